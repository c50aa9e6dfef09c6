"""The exchanges of a secure sum (`fedrec.wire.secure`), around the training whose updates it adds up.

A user is charged what it would move as a device of its own, as everywhere: with as many neighbours as there would be
among devices of their own. On such devices that is, to the byte, what crosses.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from exchanges import members, records
from exchanges.declaration import Declaration, Participant
from fedrec.aggregations.base import Masks
from fedrec.core.errors import FederationError
from fedrec.core.tensors import Spec
from fedrec.secure.graph import Graph, at_most
from fedrec.secure.ring import Ring, width
from fedrec.secure.shamir import MOST_SHARES
from fedrec.stages.addition import WholeNumbers
from fedrec.stages.chain import Stages
from fedrec.wire import secure
from fedrec.wire.packet import PacketFormat
from fedrec.wire.protocol import UPDATE_SCALARS, Setup


@dataclass(frozen=True)
class Circle:
    """Who takes part in a secure sum, as all its declarations know it.

    Attributes:
        participants: How many nodes.
        users: How many users these were asked for, all together.
        graph: Among the nodes.
        alone: Among as many devices of one user each.
    """

    participants: int
    users: int
    graph: Graph
    alone: Graph

    @staticmethod
    def of(masks: Masks, participants: int, users: int) -> Circle:
        """The one of so many. Raises FederationError if they are too few for what the masks are made for."""
        graph = masks.graph(participants)
        try:
            alone = masks.graph(users)
        except FederationError:  # of so many devices there can be no sum: of a server that lies at most 256 are in one
            alone = graph
        return Circle(participants, users, graph, alone)


def ring_of(stages: Stages, trainable: Spec, users: int) -> Ring:
    """The ring that the sum of so many users' updates fits into."""
    addition = stages.addition
    assert isinstance(addition, WholeNumbers), "a secure sum is of whole numbers"
    numbers = sum(entry.size for entry in trainable.values())
    bits = width(users, addition.most_units, addition.variance, numbers)
    return Ring(trainable, len(UPDATE_SCALARS), bits)


def noised_users(users: Sequence[int], corrupt: float, participants: int) -> int:
    """How many users of those who stayed have surely not told the server their noise.

    Args:
        users: Of each node that has stayed.
        corrupt: Share of all participants who may tell it: these are taken to be the largest nodes.
        participants: How many there were.
    """
    return sum(sorted(users)[: max(0, len(users) - at_most(corrupt, participants))])


class _Stage(Declaration):
    """A stage whose packets follow from the number of participants and their graph.

    It is charged as one of devices of their own.
    """

    def __init__(self, circle: Circle) -> None:
        """Of those who take part in it."""
        self.circle = circle

    @abstractmethod
    def packets_down(self, participants: int, graph: Graph) -> Mapping[str, PacketFormat]:
        """The packets down, among so many."""

    @abstractmethod
    def packets_up(self, graph: Graph) -> Mapping[str, PacketFormat]:
        """The packets up."""

    @override
    def down(self, to: Participant) -> Mapping[str, PacketFormat]:
        return self.packets_down(self.circle.participants, self.circle.graph)

    @override
    def up(self, by: Participant) -> Mapping[str, PacketFormat]:
        return self.packets_up(self.circle.graph)

    @override
    def each_down(self, to: Participant) -> dict[str, NDArray[np.int64]]:
        alone = self.packets_down(self.circle.users, self.circle.alone)
        return {name: np.full(to.users, form.size()) for name, form in alone.items()}

    @override
    def each_up(self, by: Participant) -> NDArray[np.int64]:
        sizes = [form.size() for form in self.packets_up(self.circle.alone).values()]
        return np.full(by.users, sum(sizes), dtype=np.int64)


class Announcing(Declaration):
    """Stage 1, before anybody knows who takes part: nothing down, keys up."""

    kind = records.ANNOUNCE

    @override
    def down(self, to: Participant) -> Mapping[str, PacketFormat]:
        return {}

    @override
    def up(self, by: Participant) -> Mapping[str, PacketFormat]:
        return {records.ANNOUNCED: secure.announced_format()}


class Sharing(_Stage):
    """Stage 2: the roll and the neighbours' keys down, sealed shares up."""

    kind = records.SHARE

    @override
    def packets_down(self, participants: int, graph: Graph) -> Mapping[str, PacketFormat]:
        return {records.ROLL: secure.roll_format(participants, graph)}

    @override
    def packets_up(self, graph: Graph) -> Mapping[str, PacketFormat]:
        return {records.SEALED: secure.sealed_up_format(graph)}


class MaskedTraining(members.Training):
    """Stage 3: training, with sealed shares down beside the model, and a part of the sum up in the update's place."""

    def __init__(self, setup: Setup, trainable: Spec, circle: Circle | None) -> None:
        """Of a model with these trainable tensors; None: nobody takes part."""
        super().__init__(setup, trainable)
        self._circle = circle
        self.ring = ring_of(setup.stages, trainable, circle.users) if circle else None

    @override
    def down(self, to: Participant) -> Mapping[str, PacketFormat]:
        if self._circle is None:
            return {}
        return {**super().down(to), records.SEALED: secure.sealed_down_format(self._circle.graph)}

    @override
    def up(self, by: Participant) -> Mapping[str, PacketFormat]:
        return {records.UPDATE: secure.masked_format(self.ring)} if self.ring else {}

    @override
    def each_down(self, to: Participant) -> dict[str, NDArray[np.int64]]:
        each = super().each_down(to)
        if self._circle is not None and to.users:
            each[records.SEALED] = np.full(to.users, secure.sealed_down_format(self._circle.alone).size())
        return each


class Unmasking(_Stage):
    """Stage 4: what became of everybody down, shares up."""

    kind = records.UNMASK

    @override
    def packets_down(self, participants: int, graph: Graph) -> Mapping[str, PacketFormat]:
        return {records.STATUS: secure.status_format(participants)}

    @override
    def packets_up(self, graph: Graph) -> Mapping[str, PacketFormat]:
        return {records.OPENED: secure.opened_format(graph)}


@dataclass(frozen=True)
class Cost:
    """What a secure sum makes each device move in a round, of so many devices of one user each.

    Attributes:
        devices: How many are in it.
        degree: Neighbours of each, who hold shares of its secrets.
        threshold: Of them, who have to stay.
        bits: Of a number of the update on its way.
        up: Bytes up, the masked update among them.
        down: Bytes down, beside the model.
    """

    devices: int
    degree: int
    threshold: int
    bits: int
    up: int
    down: int


def cost(setup: Setup, trainable: Spec, devices: int) -> Cost:
    """The cost of a round of so many devices, or of as many as there can be where the server may lie.

    Raises FederationError if they are too few for a secure sum.
    """
    masks = setup.aggregation_of_run.masks
    assert masks is not None, "the run has no secure sums"
    devices = min(devices, MOST_SHARES + 1) if masks.lying else devices
    circle, device = Circle.of(masks, devices, devices), Participant()
    training = MaskedTraining(setup, trainable, circle)
    stages: list[Declaration] = [Announcing(), Sharing(circle), training, Unmasking(circle)]
    model = sum(form.size() for form in members.Training(setup, trainable).down(device).values())
    up, down = (sum(sizes) for sizes in ([e.up_bytes(device) for e in stages], [e.down_bytes(device) for e in stages]))
    assert training.ring is not None, "somebody takes part"
    return Cost(devices, circle.graph.degree, circle.graph.threshold, training.ring.bits, up, down - model)
