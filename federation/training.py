"""One round's training: who is asked, which answers count, when there are enough of them, and their mean."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from exchanges import members, records
from exchanges.records import Content, grouped
from federation.aggregation import UpdateFold, summary
from federation.cohorts.base import CohortSampling, Roots
from federation.conversation import Conversation
from federation.directory import Directory, Share
from federation.exchange import Exchange
from federation.group_models import GroupModels
from federation.mends import USERS, said
from federation.model_exchange import ModelExchange
from federation.node_limits import parts_that_count
from fedrec.config.schema import FederationConfig
from fedrec.core.errors import FederationError, PacketError, RoundError
from fedrec.networks.simulated import SimulatedNetwork
from fedrec.wire.clock import Clock
from fedrec.wire.packet import Packet
from fedrec.wire.protocol import UPDATE_SCALARS, Setup
from fedrec.wire.updates import DROPPED, LATE

log = logging.getLogger("fedrec")


class TrainingOrder(NamedTuple):
    """What a round's training is told.

    Attributes:
        setup: What every client was told.
        models: The models that are trained.
        rules: How many are asked, and what counts.
        sampling: How the users are chosen.
        secret: From the server's secret root, for the choice.
        round: The round.
        kept: The earliest round to which the server may go back.
        counts: Where a loss is counted that is not believed, and a node that weighs less.
    """

    setup: Setup
    models: GroupModels
    rules: FederationConfig
    sampling: CohortSampling
    secret: int
    round: int
    kept: int
    counts: Counter[str]


class Training(ModelExchange):
    """The training of one round.

    Attributes:
        folds: The updates that count, by group.
        clocks: The time that users took, by node; where it is simulated.
    """

    def __init__(self, order: TrainingOrder) -> None:
        """Of the models as they are now."""
        setup, models, rules, sampling, secret, round, kept, counts = order
        self._trainable = models.trained
        declared = members.Training(setup, models.trainable)
        super().__init__(declared, f"round {round}", models, round, rules.max_failures, round, kept)
        self._setup, self._rules, self._counts = setup, rules, counts
        self._sampling, self._roots = sampling, Roots(setup.seed, secret)
        self._target = self._cohort_size = 0
        self._uploaded: dict[int, int] = {}
        self.clocks: dict[int, Clock] = {}
        self._timed = isinstance(setup.network_of_run, SimulatedNetwork)
        self._asks = models.model.embedding.counts
        self.folds = {group: self._empty_fold(0) for group in models}
        self._share = rules.node_limits(simulated=setup.simulation is not None).share
        self._parts: Mapping[int, float] = {}

    def _empty_fold(self, users: int) -> UpdateFold:
        stages, spec = self._setup.stages, self._trainable
        units = stages.units_per_one(users)
        if self._asks:  # what somebody says is one example, and as long as everybody's
            return UpdateFold(spec, users, 1, stages.largest_part(spec), units, stages.rows_of_part(spec))
        return UpdateFold(spec, users, self._rules.weight_cap, stages.largest(spec), units, stages.rows_of_one(spec))

    def carry(self, talk: Conversation, riding: Sequence[Exchange]) -> None:
        """Have the training carried, with what rides on its messages, and all that belongs to it.

        Raises RoundError if too few took part.
        """
        talk.carry(*riding, self)

    @override
    def participants(self, directory: Directory) -> dict[int, Share]:
        rules = self._rules
        wanted = rules.fraction * (1 + rules.over_sampling)
        there = directory.there(self._setup.network_of_run, self.round)
        users = directory.cohort(self._sampling, self.round, wanted, self._roots, there)
        self._cohort_size = len(users)
        self._target = self._sampling.awaited(len(there), len(users), rules.fraction)
        asked = np.bincount(directory.groups[users], minlength=len(self.folds))
        self.folds = {group: self._empty_fold(int(n)) for group, n in zip(self.folds, asked, strict=True)}
        self._uploaded, self.clocks = {}, {}
        shares = directory.shares(users)
        self._parts = parts_that_count({node: len(share.users) for node, share in shares.items()}, self._share)
        return shares

    @override
    def arrays(self, node: int) -> Mapping[str, NDArray[np.generic]]:
        return {records.SLOTS: self.shares[node].slots, **({records.DOWN: self.downloads[node]} if self._timed else {})}

    @override
    def take(self, node: int, answer: Content) -> None:
        forms, asked = self.declared.up(self.participant(node)), self.asked_of(node)
        packets, uploaded, clock = dict[str, Packet](), 0, Clock(0.0, 0)
        for group, users in asked.items():
            name = grouped(records.UPDATE, group)
            data = answer.packet(name)
            packet = forms[name].decode(data, phase=self.phase, round=self.round)
            scalars, more = packet.scalars[: len(UPDATE_SCALARS)], packet.scalars[len(UPDATE_SCALARS) :]
            packets[group] = packet._replace(scalars=scalars)
            uploaded += self._of_own_devices(users, *more) if more else self._of_one(users, data)
            if self._timed:
                took = Clock.read(answer.packet(grouped(records.CLOCK, group)), users)
                clock = Clock(max(clock.seconds, took.seconds), clock.late + took.late)
        self.fold_packets(node, packets)
        self._uploaded[node] = uploaded
        self.clocks[node] = clock

    def fold_packets(self, node: int, packets: Mapping[str, Packet]) -> None:
        """Fold what a node's users of each group give, whole or not at all. Raises PacketError if it is of no use."""
        asked = self.asked_of(node)
        for group in packets if len(packets) > 1 else ():
            self.folds[group].check(packets[group], asked[group])
        for group, packet in packets.items():
            if not self.folds[group].add(packet, asked[group], self._parts[node]):
                self._counts["wrong_loss"] += 1
                log.warning("node %d claims a loss that no training has: it is left out of the mean", node)
        if self._parts[node] < 1.0:
            self._counts["node_share"] += 1
            log.warning("node %d has so many of the round's users that it weighs less", node)

    def _of_one(self, users: int, packet: bytes) -> int:
        """The length of the packets of this many users' own devices, which are as long as declared, or came itself."""
        return len(packet) if users == 1 else users * self._setup.update_format(self._trainable, 1).size()

    def _of_own_devices(self, users: int, tensors: float) -> int:
        """The length of the packets of this many users' own devices, whose tensors have together so many bytes.

        Raises PacketError (`wrong_bytes`) if they cannot have.
        """
        form = self._setup.update_format(self._trainable, 1)
        least, most = users * (form.least() - form.head), users * (form.size() - form.head)
        if not (least <= tensors <= most and tensors == int(tensors)):  # neither NaN nor infinity passes the first
            raise PacketError(
                "wrong_bytes", f"{users} devices would send {least} to {most} bytes of tensors, not {tensors!r}"
            )
        return int(tensors) + users * form.head

    @override
    def uploaded(self, node: int) -> int:
        return self._uploaded[node]

    @override
    def seconds(self, network: SimulatedNetwork) -> float:
        """Until the slowest chosen user was done, or the deadline: bytes up and work differ by user."""
        return max((clock.seconds for clock in self.clocks.values()), default=0.0)

    @property
    def _answered(self) -> int:
        """Users on the nodes whose answers were taken."""
        return sum(len(self.shares[node].users) for node in self.taken)

    @override
    def enough(self) -> bool:
        """Whether so many users have answered that a round with over-sampling may end."""
        return bool(self._rules.over_sampling) and self._answered >= self._target

    @override
    def require_enough(self, counts: Mapping[str, int]) -> None:
        """Raise RoundError if too many nodes have failed, or the updates of too few users count.

        Raises FederationError where doing the round again would change nothing: all nodes have answered, and have left
        their users out themselves.
        """
        if self._answered < self._target:
            super().require_enough(counts)
        counted = int(self._counted("users"))
        if counted < (least := min(self._rules.min_users, self._cohort_size)):  # a cohort may be drawn of nobody
            dropped = said(self._dropped(), USERS)
            text = (
                f"{self.what}: the updates of {counted} of {self._cohort_size} chosen users count, "
                f"federation.min_users={least} are needed ({dict(counts)}"
                + (f"; users left out: {dropped})" if dropped else "); see the log above for why")
            )
            raise (FederationError if len(self.taken) == self._nodes_asked else RoundError)(text)

    @property
    def _nodes_asked(self) -> int:
        """How many nodes the round began with."""
        return len(self.shares)

    def _dropped(self) -> dict[str, int]:
        """Users whom their nodes left out, by reason."""
        counts = {name: int(self._counted(name)) for name in DROPPED}
        counts[LATE] = sum(clock.late for clock in self.clocks.values())
        return {name: count for name, count in counts.items() if count}

    def _counted(self, name: str) -> float:
        return sum(fold.scalar(name) for fold in self.folds.values())

    def record(self) -> dict[str, Any]:
        """What the round's line of the metrics says of it."""
        values = summary(list(self.folds.values()))
        releases = [
            {name: value for name, value in dataclasses.asdict(event).items() if value is not None}
            for event in self._setup.stages.events(self.round)
        ]
        account = {"releases": releases} if releases else {}
        if not self._setup.stages.tells:
            return {"cohort": self._cohort_size, "users": values["users"], **account}
        told = {name: value for name, value in values.items() if name not in DROPPED}
        return {"cohort": self._cohort_size, **told, "dropped_users": self._dropped(), **account}
