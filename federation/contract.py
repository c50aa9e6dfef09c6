"""What every strategy is given: its configuration, what only a deployment has, and the observer that it reports to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple, Protocol

from annotated_types import Ge, Le

from federation.checkpoint import Checkpoint
from fedrec.core.bounds import MOST_ROUNDS
from fedrec.core.registry import MemberConfig
from fedrec.core.tensors import Tensors
from fedrec.stages.base import Release


@dataclass(frozen=True)
class StrategyConfig(MemberConfig):
    """What every strategy's configuration has.

    Attributes:
        rounds: Rounds of the whole run.
        patience: Validations without a better one after which the run ends early (null: never).
    """

    rounds: Annotated[int, Ge(1), Le(MOST_ROUNDS)]
    # With a default: a run of old has none in its folder.
    patience: Annotated[int, Ge(1), Le(MOST_ROUNDS)] | None = field(default=None, kw_only=True)


class Deployed(NamedTuple):
    """What only a deployment has.

    Attributes:
        secret: The server's secret root, of its noise.
        item_list: The public list of items, as it is sent to sites that have not got it.
    """

    secret: int
    item_list: Tensors


class Given(NamedTuple):
    """What a group's users gave in a round, as the server goes on with it.

    Attributes:
        round: The round.
        mean: The mean of their updates, after the stages' part on the sum; None if nobody's counts.
        loss: Their mean loss before the first local step; None if it is not told, or of nobody.
        weight: What their updates count together.
    """

    round: int
    mean: Tensors | None
    loss: float | None
    weight: float


class Observer(Protocol):
    """Is told what happens; writes it down or shows it."""

    def on_round(self, record: dict[str, Any]) -> None:
        """A round has ended; `record` is its metrics, one JSON object."""

    def on_release(self, round: int, releases: Sequence[Release]) -> None:
        """A round is about to give this away; what is raised here keeps it from doing so."""

    def on_checkpoint(self, checkpoint: Checkpoint) -> None:
        """The run as it stands after a round is to be kept."""
