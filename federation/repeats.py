"""What is done again if too few took part: with those who are here then, and not for ever."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

from fedrec.core.errors import RoundError

log = logging.getLogger("fedrec")

_COUNTED_AS = {"round": "round_repeated", "ranking": "ranking_repeated"}


def repeated(
    what: str, repeats: int, counts: Counter[str], work: Callable[[], None], gather: Callable[[], None]
) -> None:
    """Do a piece of work, and again as long as it raises RoundError; at last that is raised.

    Args:
        what: Its name for the log, `round` or `ranking`.
        repeats: How many times it is done again at most.
        counts: Here `round_repeated` or `ranking_repeated` is counted.
        work: The work; what it has changed when it raises must not matter to the next try.
        gather: Looks who is here, before it is done again.
    """
    for left in reversed(range(1 + repeats)):
        try:
            work()
            return
        except RoundError as error:
            if not left:
                raise
            counts[_COUNTED_AS[what]] += 1
            log.warning("%s; the %s is repeated", error, what)
        gather()
