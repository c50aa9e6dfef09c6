"""One round's training: who is asked, which answers count, when there are enough of them, and their mean."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray

from exchanges import records
from federation.aggregation import UpdateFold
from federation.cohorts.base import CohortSampling, Roots
from federation.mends import USERS, said
from federation.meter import Meter
from federation.nodes import Nodes
from fedrec.core.errors import FederationError, PacketError, RoundError
from fedrec.core.tensors import Spec
from fedrec.wire.protocol import Setup
from fedrec.wire.updates import DROPPED

log = logging.getLogger("fedrec")


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
            packet = form.decode(data, phase=self._phase, round=self._round)
            believed = self.fold.add(packet, users)
        except PacketError as error:
            self._nodes.refuse(node, error, reply)
            return 0
        if not believed:
            self._nodes.counts["wrong_loss"] += 1
            log.warning("node %d claims a loss that no training has: it is left out of the mean", node)
        self._accepted += 1
        self._answered += users
        of_a_device = self._setup.update_format(self._trainable, users=1).size()
        return meter.uploaded(self._phase, share.users, of_a_device)

    def enough(self) -> bool:
        """Whether so many users have answered that a round with over-sampling may end."""
        return bool(self._rules.over_sampling) and self._answered >= self._target

    def require_enough(self) -> None:
        """Raise RoundError if too many nodes have failed, or the updates of too few users count.

        Raises FederationError where doing the round again would change nothing: all nodes have answered, and have left
        their users out themselves.
        """
        what = f"round {self._round}"
        if self._answered < self._target:
            most = self._rules.max_failures
            self._nodes.give_up_if_too_many_failed(what, len(self.shares), self._accepted, most)
        counted = int(self.fold.scalar("users"))
        if counted < (least := min(self._rules.min_users, len(self.users))):  # a cohort may be drawn of nobody
            dropped = said(self._dropped(), USERS)
            text = (
                f"{what}: the updates of {counted} of {len(self.users)} chosen users count, "
                f"strategy.min_users={least} are needed ({dict(self._nodes.counts)}"
                + (f"; users left out: {dropped})" if dropped else "); see the log above for why")
            )
            raise (FederationError if self._accepted == len(self.shares) else RoundError)(text)

    def _dropped(self) -> dict[str, int]:
        """Users whom their nodes left out, by reason."""
        return {name: count for name in DROPPED if (count := int(self.fold.scalar(name)))}

    def record(self) -> dict[str, Any]:
        """What the round's line of the metrics says of it."""
        values = self.fold.summary()
        releases = [dataclasses.asdict(event) for event in self._setup.stages.events(self._round)]
        account = {"releases": releases} if releases else {}
        if not self._setup.stages.tells:
            return {"cohort": len(self.users), "users": values["users"], **account}
        told = {name: value for name, value in values.items() if name not in DROPPED}
        return {"cohort": len(self.users), **told, "dropped_users": self._dropped(), **account}
