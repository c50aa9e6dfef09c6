"""Who shares secrets with whom, and how many must come together to learn one: the graph of a secure sum.

Every participant has `degree` neighbours, which hold shares of its secrets, and `threshold` of them can put one
together (Bell, Bonawitz, Gascon, Lepoint and Raykova, CCS 2020). Both follow from how many participants may be corrupt,
that is tell the server what they hold, and how many may drop out. Neighbours are as good as drawn at random, so how
many corrupt ones somebody has is hypergeometric. A union bound over all participants keeps

- below 2**-40 the probability that anybody's secret can be put together without its honest neighbours, and that the
  honest who stay fall apart into two sums;
- below 2**-30 the probability that anybody has too few neighbours left for the sum to be taken.

Among few participants everybody is everybody's neighbour, and nothing is left to chance. So it is with a server that
may lie, whatever their number: it makes the roll from which neighbours follow, and could try rolls until one gave
somebody its own accomplices for neighbours. It may also ask one half of the neighbours for one secret and the other
half for the other: the threshold is so high that both cannot be had, as long as no more than the corrupt tell both. And
it may tell everybody something else of who has shared, so that masks do not cancel out where they should: a node then
sends no part unless all others have (`client_app/answers/masking.py`). How many are left in the sum is not in this.
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import FederationError
from fedrec.secure.shamir import MOST_SHARES

LEAST = 3
"""Participants of a secure sum: of the sum of two each learns the other's part."""

DIGEST_BYTES = 16
"""Of what a participant announces, in the roll."""

_SECURITY, _CORRECTNESS = 40, 30
_ROUNDING = 1e-9  # 0.29 times 100 is 28.999...


class Graph(NamedTuple):
    """Of one secure sum.

    Attributes:
        degree: Neighbours of each participant.
        threshold: Of them, who can put together a secret.
    """

    degree: int
    threshold: int


@lru_cache(maxsize=256)
def graph_of(participants: int, corrupt: float, dropouts: float, *, lying: bool) -> Graph:
    """Degree and threshold among so many participants.

    Args:
        participants: How many there are.
        corrupt: Share of them who may tell the server what they hold, rounded up to whole ones.
        dropouts: Share of them who may be lost.
        lying: Whether the server may tell different participants different things.

    Raises FederationError if no graph will do: there are too few of them, or too many, or both shares are too large.
    """
    bad, lost = at_most(corrupt, participants), math.floor(dropouts * participants + _ROUNDING)
    whole = participants - 1
    if lying and whole > MOST_SHARES:
        raise FederationError(
            f"{participants} participants: where the server may lie everybody has to be everybody's neighbour, so that "
            f"it cannot choose neighbours, and a secret has at most {MOST_SHARES} shares; have at most "
            f"{MOST_SHARES + 1} participants, or give aggregation.server=curious"
        )
    for degree in () if lying else range(2, min(whole, MOST_SHARES + 1), 2):
        if _log_apart(participants, corrupt + dropouts, degree) > -_SECURITY * math.log(2):
            continue
        threshold = _threshold(participants, bad, lost, degree)
        if threshold is not None:
            return Graph(degree, threshold)
    if LEAST <= participants <= MOST_SHARES + 1:
        least = (whole + max(bad, 1)) // 2 + 1 if lying else bad + 1
        threshold = min(max(least, whole // 2 + 1), whole - lost)
        if threshold >= least:
            return Graph(whole, threshold)
    raise FederationError(
        f"no graph of {participants} participants hides a sum, {corrupt:g} of whom may be corrupt and {dropouts:g} lost"
        f"{', from a server that lies' if lying else ''}: have {LEAST} or more of them, or give smaller shares "
        "(aggregation.corrupt, aggregation.dropouts)"
    )


def at_most(share: float, participants: int) -> int:
    """How many a share of them is, rounded up."""
    return math.ceil(share * participants - _ROUNDING)


def _threshold(participants: int, bad: int, lost: int, degree: int) -> int | None:
    """The least threshold that is safe, if there is one."""
    others, all_of_them = participants - 1, math.log(participants)
    for threshold in range(degree // 2 + 1, degree + 1):
        stuck = _log_tail(others, lost, degree, degree - threshold + 1)
        if all_of_them + stuck > -_CORRECTNESS * math.log(2):
            return None  # nor is any higher one
        if all_of_them + _log_tail(others, bad, degree, threshold) <= -_SECURITY * math.log(2):
            return threshold
    return None


def _log_apart(participants: int, gone: float, degree: int) -> float:
    """The logarithm of a bound on the probability that those who are neither corrupt nor lost fall apart.

    The graph is a ring in which everybody knows degree / 2 on either side: it falls apart where so many in a row are
    gone.
    """
    return math.log(participants) + degree / 2 * math.log(gone) if gone else -math.inf


def _log_tail(others: int, marked: int, drawn: int, least: int) -> float:
    """The logarithm of P(X >= least), X the marked among `drawn` of `others`, of whom `marked` are marked."""
    terms = [
        _log_choose(marked, i) + _log_choose(others - marked, drawn - i) - _log_choose(others, drawn)
        for i in range(max(least, drawn - (others - marked)), min(drawn, marked) + 1)
    ]
    if not terms:
        return -math.inf
    largest = max(terms)
    return largest + math.log(sum(math.exp(term - largest) for term in terms))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def neighbours(roll: NDArray[np.uint8], degree: int) -> NDArray[np.int64]:
    """The neighbours of everybody on a roll, int64 [participants, degree], ascending; being neighbours is mutual.

    They follow from what all participants have announced, so that nobody chooses them: each participant is put in a
    ring, at a place that is a digest of the roll and of its own line.

    Args:
        roll: uint8 [participants, DIGEST_BYTES], the digest of what each has announced; all different.
        degree: How many neighbours each has: an even number, or all others.
    """
    n = len(roll)
    if degree == n - 1:
        return np.array([[other for other in range(n) if other != own] for own in range(n)], dtype=np.int64)
    whole = hashlib.sha256(roll.tobytes()).digest()
    keys = [hashlib.sha256(whole + line.tobytes()).digest() for line in roll]
    order = np.array(sorted(range(n), key=keys.__getitem__), dtype=np.int64)
    steps = np.concatenate([np.arange(-(degree // 2), 0), np.arange(1, degree // 2 + 1)])
    found = np.empty((n, degree), dtype=np.int64)
    found[order] = np.sort(order[(np.arange(n)[:, None] + steps) % n], axis=1)
    return found
