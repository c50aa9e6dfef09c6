"""One round's training: who is asked, which answers count, when there are enough of them, and their mean."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray

from exchanges import records
from federation.aggregation import UpdateFold
from federation.cohorts.base import CohortSampling, Roots
from federation.meter import Meter
from federation.nodes import Nodes
from fedrec.core.errors import PacketError, RoundError
from fedrec.core.tensors import Spec
from fedrec.wire.protocol import Setup
from fedrec.wire.updates import DROPPED


class Training:
    """One try of one round.

    Attributes:
        shares: The chosen users, by the node on which they live.
        users: int64 [chosen], their numbers in the directory.
        fold: The updates that count.
    """

    def __init__(
        self,
        setup: Setup,
        nodes: Nodes,
        rules: Any,
        sampling: CohortSampling,
        secret: int,
        trainable: Spec,
        phase: int,
        round: int,
    ) -> None:
        """Choose the users of a round.

        Args:
            setup: What every client was told.
            nodes: Who is here.
            rules: The strategy's configuration.
            sampling: How the users are chosen.
            secret: From the server's secret root, for the choice.
            trainable: What is trained.
            phase: In which phase.
            round: In which round.
        """
        self._setup, self._nodes, self._rules = setup, nodes, rules
        self._trainable, self._phase, self._round = trainable, phase, round
        directory, stages, roots = nodes.directory, setup.stages, Roots(setup.seed, secret)
        fraction = rules.fraction * (1 + rules.over_sampling)
        self.users: NDArray[np.int64] = directory.cohort(sampling, round, fraction, roots)
        self._target = sampling.awaited(len(directory.here), len(self.users), rules.fraction)
        self.shares = directory.shares(self.users)
        self.fold = UpdateFold(
            trainable, len(self.users), rules.weight_cap, stages.max_norm, stages.units_per_one(len(self.users))
        )
        self._answered = self._accepted = 0

    def take(self, meter: Meter, reply: Message) -> int:
        """Fold a node's update, whole or not at all; the bytes of an accepted one, for its users' devices."""
        node = self._nodes.sender(reply)
        if (share := self.shares.get(node)) is None:
            return 0
        users = len(share.users)
        try:
            data = records.unpack(reply.content).packet(records.UPDATE)
            form = self._setup.update_format(self._trainable, users)
            self.fold.add(form.decode(data, phase=self._phase, round=self._round), users)
        except PacketError as error:
            self._nodes.refuse(node, error, reply)
            return 0
        self._accepted += 1
        self._answered += users
        of_a_device = self._setup.update_format(self._trainable, users=1).size()
        return meter.uploaded(self._phase, share.users, of_a_device)

    def enough(self) -> bool:
        """Whether so many users have answered that a round with over-sampling may end."""
        return bool(self._rules.over_sampling) and self._answered >= self._target

    def require_enough(self) -> None:
        """Raise RoundError if too many nodes have failed, or those of too few users have answered."""
        what = f"round {self._round}"
        if self._answered < self._target:
            most = self._rules.max_failures
            self._nodes.give_up_if_too_many_failed(what, len(self.shares), self._accepted, most)
        if self._answered < (least := min(self._rules.min_users, len(self.users))):  # it may have drawn nobody
            raise RoundError(
                f"{what}: the nodes of {self._answered} chosen users answered, strategy.min_users={least} are needed "
                f"({dict(self._nodes.counts)}); see the log above for why"
            )

    def record(self) -> dict[str, Any]:
        """What the round's line of the metrics says of it."""
        values = self.fold.summary()
        if not self._setup.stages.tells:
            return {"cohort": len(self.users), "users": values["users"], **self._account()}
        dropped = {name: int(values.pop(name)) for name in DROPPED}
        left_out = {name: count for name, count in dropped.items() if count}
        return {"cohort": len(self.users), **values, "dropped_users": left_out, **self._account()}

    def _account(self) -> dict[str, Any]:
        releases = [dataclasses.asdict(event) for event in self._setup.stages.events(self._round)]
        return {"releases": releases} if releases else {}
