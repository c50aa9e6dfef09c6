"""What every strategy is told, and whom it tells: its configuration, and the observer of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from annotated_types import Ge, Gt, Le

from fedrec.registry import MemberConfig
from strategies.checkpoint import Checkpoint


@dataclass(frozen=True)
class StrategyConfig(MemberConfig):
    """What every strategy's configuration has.

    Attributes:
        rounds: Rounds of the whole run.
        fraction: Share of the users who train in a round.
        weight_cap: A user's weight in the average is the number of its training items, at most this.
        max_update_norm: A user's delta of a larger norm is dropped (and counted).
        max_failures: Share of the asked nodes that may fail in a round before the run is given up.
        round_timeout: Seconds after which a round goes on without those that have not answered.
    """

    rounds: Annotated[int, Ge(1)]
    fraction: Annotated[float, Gt(0), Le(1)]
    weight_cap: Annotated[int, Ge(1), Le(1_000_000)]
    max_update_norm: Annotated[float, Gt(0), Le(1e6)]
    max_failures: Annotated[float, Ge(0), Le(1)]
    round_timeout: Annotated[float, Gt(0)]


class Observer(Protocol):
    """Is told what happens; writes it down or shows it."""

    def on_round(self, record: dict[str, Any]) -> None:
        """A round has ended; `record` is its metrics, one JSON object."""

    def on_checkpoint(self, checkpoint: Checkpoint) -> None:
        """The run as it stands after a round is to be kept."""
