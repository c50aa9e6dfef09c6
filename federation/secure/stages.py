"""The stages of a secure sum beside the training: announcing, sharing, unmasking."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from flwr.app import Array
from numpy.typing import NDArray
from typing_extensions import override

from exchanges import records
from exchanges import secure as declarations
from exchanges.records import Content, Field
from federation.directory import Directory, Share
from federation.exchange import Exchange
from federation.secure.circle import Participants
from fedrec.core.errors import PacketError
from fedrec.secure.keys import Announced
from fedrec.wire.secure import encoded

Bytes = NDArray[np.uint8]


class When(NamedTuple):
    """Which round's sum a stage belongs to.

    Attributes:
        phase: Of the plan.
        round: The round.
        max_failures: Share of the asked nodes that may be of no use.
        context: Names the sum.
    """

    phase: int
    round: int
    max_failures: float
    context: bytes


class Announcing(Exchange):
    """The cohort's nodes announce themselves.

    Attributes:
        announced: What each has announced.
    """

    def __init__(self, when: When, cohort: Callable[[Directory], dict[int, Share]]) -> None:
        """For the sum of a round; `cohort` chooses its users."""
        what = f"round {when.round}, announcing"
        super().__init__(declarations.Announcing(), what, when.phase, when.round, max_failures=when.max_failures)
        self._context, self._cohort = when.context, cohort
        self.announced: dict[int, Announced] = {}
        self._seen: set[tuple[str, bytes]] = set()

    @override
    def participants(self, directory: Directory) -> dict[int, Share]:
        self.announced, self._seen = {}, set()
        return self._cohort(directory)

    @override
    def arrays(self, node: int) -> Mapping[str, NDArray[np.generic]]:
        return {records.SLOTS: self.shares[node].slots}

    @override
    def take(self, node: int, answer: Content) -> None:
        form = self.declared.up(self.participant(node))[records.ANNOUNCED]
        came = form.decode(answer.packet(records.ANNOUNCED), phase=self.phase, round=self.round).tensors
        line, users = Announced.unpacked(came["announced"].numpy()), len(self.shares[node].users)
        line.require_signed(self._context)
        line.require_keys()
        if line.users != users:
            raise PacketError("wrong_users", f"{users} users were asked for, {line.users} are announced")
        mine = {("identity", line.identity), ("channel", line.channel), ("mask", line.mask)}
        if mine & self._seen:  # no node takes part in a sum in which one stands twice
            raise PacketError("wrong_identity", f"two nodes announce themselves as {line.identity.hex()}, or its key")
        self._seen |= mine
        self.announced[node] = line


class _Stage(Exchange):
    """A stage of those who are on the roll: one packet down, one up."""

    def __init__(
        self, declared: declarations.Sharing | declarations.Unmasking, what: str, when: When, asked: Mapping[int, Share]
    ) -> None:
        """`asked`: the users of each node that takes part, if it is still here."""
        name = f"round {when.round}, {what}"
        super().__init__(declared, name, when.phase, when.round, max_failures=when.max_failures)
        self._asked = asked

    @override
    def participants(self, directory: Directory) -> dict[int, Share]:
        here = set(directory.nodes)
        return {node: share for node, share in self._asked.items() if node in here}

    def _encoded(self, name: str, node: int, **arrays: Bytes) -> Mapping[str, bytes | Array]:
        form = self.declared.down(self.participant(node))[name]
        return {name: encoded(form, self.phase, self.round, **arrays)}

    def _decoded(self, name: str, node: int, answer: Content) -> dict[str, Bytes]:
        form = self.declared.up(self.participant(node))[name]
        packet = form.decode(answer.packet(name), phase=self.phase, round=self.round)
        return {key: tensor.numpy() for key, tensor in packet.tensors.items()}


class Sharing(_Stage):
    """All who have announced themselves share out their secrets."""

    def __init__(self, when: When, among: Participants, asked: Mapping[int, Share]) -> None:
        """Of those on the roll."""
        mine = {node: asked[node] for node in among.nodes}
        super().__init__(declarations.Sharing(among.size), "sharing", when, mine)
        self._among = among

    @override
    def fields(self, node: int) -> Mapping[str, Field]:
        return {**super().fields(node), records.PARTICIPANTS: len(self._among.nodes)}

    @override
    def packets(self, node: int) -> Mapping[str, bytes | Array]:
        among = self._among
        return self._encoded(records.ROLL, node, roll=among.roll, users=among.users, neighbours=among.lines_for(node))

    @override
    def take(self, node: int, answer: Content) -> None:
        came = self._decoded(records.SEALED, node, answer)
        self._among.shared(node, came["sealed"], came["commitment"].tobytes())


class Unmasking(_Stage):
    """All whose parts are in the sum tell what is needed to take its masks off.

    Attributes:
        status: uint8 [participants], what has become of everybody.
        told: What each has told, by its place.
    """

    def __init__(self, when: When, among: Participants, survivors: Mapping[int, Share]) -> None:
        """`survivors`: the users of the nodes whose parts are in the sum."""
        super().__init__(declarations.Unmasking(among.size), "unmasking", when, survivors)
        self._among = among
        self.status = among.status(survivors)
        self.told: dict[int, tuple[Bytes, Bytes]] = {}

    @override
    def packets(self, node: int) -> Mapping[str, bytes | Array]:
        return self._encoded(records.STATUS, node, status=self.status)

    @override
    def take(self, node: int, answer: Content) -> None:
        came = self._decoded(records.OPENED, node, answer)
        self.told[self._among.place(node)] = (came["kinds"], came["shares"])
