"""What every strategy is given: its configuration, what only a deployment has, and the observer that it reports to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, Protocol

from annotated_types import Ge, Gt, Le

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
        fraction: Share of the users who train in a round.
        weight_cap: A user's weight in the average is the number of its training items, at most this.
        max_update_norm: A user's delta of a larger norm is dropped (and counted).
        over_sampling: Share of users who are asked beyond those. The round ends as soon as nodes with as many users as
            it would have had without them have answered; the result then depends on who is quick (0: it does not).
        max_failures: Share of the asked nodes that may fail in a round, or in a ranking.
        min_users: Users whose updates a round needs at least: updates that count, after the nodes and the server have
            left out what cannot be used (0: a round in which nobody's counts changes nothing and passes).
        repeats: How many times a round in which more failed, or fewer users' updates count, is done again, with those
            who are there then, before the run is given up. Its model is then still the one before that round. A
            ranking in which more failed is done again as often.
        min_nodes: Nodes with users without which no round begins.
        node_timeout: Seconds to wait for these before the run is given up.
        round_timeout: Seconds for which a round waits for a node of which nothing is known (null: 120, in a simulation
            600). A node that is known to need longer is given half as much again as it needs, at most three times
            this; one that needs more than that is left out.
        silent_rounds: Messages in a row that a node leaves unanswered before it rests: it is then left out, and asked
            again after 1, 2, 4, ... 32 times as long as was waited for it, at most after an hour, or as soon as a late
            answer shows that it can be in time.
    """

    rounds: Annotated[int, Ge(1), Le(MOST_ROUNDS)]
    fraction: Annotated[float, Gt(0), Le(1)]
    weight_cap: Annotated[int, Ge(1), Le(1_000_000)]
    max_update_norm: Annotated[float, Gt(0), Le(1e6)]
    over_sampling: Annotated[float, Ge(0), Le(10)]
    max_failures: Annotated[float, Ge(0), Le(1)]
    min_users: Annotated[int, Ge(0), Le(10_000_000)]
    repeats: Annotated[int, Ge(0), Le(1000)]
    min_nodes: Annotated[int, Ge(1), Le(10_000_000)]
    node_timeout: Annotated[float, Ge(0), Le(10_000_000)]
    round_timeout: Annotated[float, Gt(0), Le(10_000_000)] | None
    silent_rounds: Annotated[int, Ge(1), Le(MOST_ROUNDS)]

    def patience(self, *, simulated: bool) -> float:
        """Seconds after which a round goes on."""
        return self.round_timeout or (600.0 if simulated else 120.0)


class Deployed(NamedTuple):
    """What only a deployment has.

    Attributes:
        secret: The server's secret root, of its noise.
        item_list: The public list of items, as it is sent to sites that have not got it.
    """

    secret: int
    item_list: Tensors


class Observer(Protocol):
    """Is told what happens; writes it down or shows it."""

    def on_round(self, record: dict[str, Any]) -> None:
        """A round has ended; `record` is its metrics, one JSON object."""

    def on_release(self, round: int, releases: Sequence[Release]) -> None:
        """A round is about to give this away; what is raised here keeps it from doing so."""

    def on_checkpoint(self, checkpoint: Checkpoint) -> None:
        """The run as it stands after a round is to be kept."""
