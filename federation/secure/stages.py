"""The stages of a secure sum beside the training: announcing, sharing, unmasking; and the round that carries them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from flwr.app import Array
from numpy.typing import NDArray
from typing_extensions import override

from exchanges import records
from exchanges import secure as declarations
from exchanges.records import Content, Field
from federation.conversation import Conversation
from federation.directory import Directory, Share
from federation.exchange import Exchange
from federation.secure.circle import Participants
from federation.secure.training import MaskedTraining
from federation.secure.unmasking import unmasked
from fedrec.aggregations.base import Masks
from fedrec.core.errors import FederationError, PacketError
from fedrec.secure.keys import Announced, context_of
from fedrec.wire.protocol import Setup

log = logging.getLogger("fedrec")


class Announcing(Exchange):
    """The cohort's nodes announce themselves.

    Attributes:
        announced: What each has announced.
    """

    def __init__(self, training: MaskedTraining, context: bytes) -> None:
        """For the training of a round; `context` is that of its sum."""
        what = f"round {training.round}, announcing"
        super().__init__(
            declarations.Announcing(), what, training.phase, training.round, max_failures=training.max_failures
        )
        self._training, self._context = training, context
        self.announced: dict[int, Announced] = {}

    @override
    def participants(self, directory: Directory) -> dict[int, Share]:
        self.announced = {}
        return self._training.chosen(directory)

    @override
    def arrays(self, node: int) -> Mapping[str, NDArray[np.generic]]:
        return {records.SLOTS: self.shares[node].slots}

    @override
    def take(self, node: int, answer: Content) -> None:
        form = self.declared.up(self.participant(node))[records.ANNOUNCED]
        came = form.decode(answer.packet(records.ANNOUNCED), phase=self.phase, round=self.round).tensors
        line = Announced.unpacked(came["announced"].numpy())
        line.require_signed(self._context)
        if line.users != len(self.shares[node].users):
            raise PacketError(
                "wrong_users", f"{len(self.shares[node].users)} users were asked for, {line.users} are announced"
            )
        others = self.announced.values()
        if any(line.identity == other.identity or line.mask == other.mask for other in others):
            raise PacketError("wrong_identity", f"{line.identity.hex()}, or its key, was announced by two nodes")
        self.announced[node] = line


class _Among(Exchange):
    """A stage of those who are on the roll."""

    def __init__(self, declared: declarations.Sharing | declarations.Unmasking, what: str, training: MaskedTraining):
        assert training.among is not None, "nobody takes part"
        self._among, self._training = training.among, training
        name = f"round {training.round}, {what}"
        super().__init__(declared, name, training.phase, training.round, max_failures=training.max_failures)

    def _encoded(self, name: str, node: int, **arrays: NDArray[np.uint8]) -> Mapping[str, bytes | Array]:
        form = self.declared.down(self.participant(node))[name]
        tensors = {key: torch.from_numpy(array.copy()) for key, array in arrays.items()}
        return {name: form.encode(self.phase, self.round, tensors)}

    def _decoded(self, name: str, node: int, answer: Content) -> dict[str, NDArray[np.uint8]]:
        form = self.declared.up(self.participant(node))[name]
        packet = form.decode(answer.packet(name), phase=self.phase, round=self.round)
        return {key: tensor.numpy() for key, tensor in packet.tensors.items()}


class Sharing(_Among):
    """All who have announced themselves share out their secrets."""

    def __init__(self, training: MaskedTraining, asked: Mapping[int, Share]) -> None:
        """`asked`: the users of each node that was asked to announce itself."""
        assert training.among is not None, "nobody takes part"
        super().__init__(declarations.Sharing(training.among.size), "sharing", training)
        self._asked = asked

    @override
    def participants(self, directory: Directory) -> dict[int, Share]:
        return {node: self._asked[node] for node in self._among.nodes if node in directory.nodes}

    @override
    def fields(self, node: int) -> Mapping[str, Field]:
        return {**super().fields(node), records.PARTICIPANTS: len(self._among.nodes)}

    @override
    def packets(self, node: int) -> Mapping[str, bytes | Array]:
        lines = self._among.lines_for(node)
        return self._encoded(records.ROLL, node, roll=self._among.roll, users=self._among.users, neighbours=lines)

    @override
    def take(self, node: int, answer: Content) -> None:
        came = self._decoded(records.SEALED, node, answer)
        self._among.shared(node, came["sealed"], came["commitment"].tobytes())


class Unmasking(_Among):
    """All whose parts are in the sum tell what is needed to take its masks off.

    Attributes:
        status: uint8 [participants], what has become of everybody.
        told: What each has told, by its place.
    """

    def __init__(self, training: MaskedTraining) -> None:
        """After the training."""
        assert training.among is not None, "nobody takes part"
        super().__init__(declarations.Unmasking(training.among.size), "unmasking", training)
        self.status = self._among.status(dict.fromkeys(training.taken))
        self.told: dict[int, tuple[NDArray[np.uint8], NDArray[np.uint8]]] = {}

    @override
    def participants(self, directory: Directory) -> dict[int, Share]:
        return {node: self._training.shares[node] for node in self._training.taken if node in directory.nodes}

    @override
    def packets(self, node: int) -> Mapping[str, bytes | Array]:
        return self._encoded(records.STATUS, node, status=self.status)

    @override
    def take(self, node: int, answer: Content) -> None:
        came = self._decoded(records.OPENED, node, answer)
        self.told[self._among.place(node)] = (came["kinds"], came["shares"])


def carry_masked(talk: Conversation, setup: Setup, riding: Sequence[Exchange], training: MaskedTraining) -> None:
    """Carry a round's training with all stages of its secure sum, and fold the sum.

    Where too few take part, or too few are left, nothing is unmasked: no update of the round counts.

    Args:
        talk: The conversation.
        setup: What every client is told.
        riding: What rides on the messages of the training.
        training: The training.

    Raises RoundError if too many nodes fail in a stage, or too few users' updates count.
    """
    masks = setup.aggregation_of_run.masks
    assert masks is not None, "the run has no secure sums"
    context = context_of(setup.run_key, training.phase, training.round)
    announcing = Announcing(training, context)
    talk.carry(announcing)
    if (among := _among(announcing, masks, talk)) is not None:
        training.open(among)
        talk.carry(Sharing(training, announcing.shares))
        among.settle()
    talk.carry(*riding, training)
    if among is not None and _may_be_known(training, setup, talk):
        _unmask(talk, training, context)
    training.settle(talk.losses.counts)


def _among(announcing: Announcing, masks: Masks, talk: Conversation) -> Participants | None:
    if not announcing.shares:
        return None
    try:
        return Participants(announcing.announced, masks)
    except FederationError as error:
        talk.losses.counts["too_few_for_a_sum"] += 1
        log.warning("%s: no secure sum: %s", announcing.what, error)
        return None


def _may_be_known(training: MaskedTraining, setup: Setup, talk: Conversation) -> bool:
    """Whether so many have stayed that the sum may be known."""
    assert training.among is not None, "nobody takes part"
    users = sum(len(training.shares[node].users) for node in training.taken)
    enough = len(training.taken) > training.among.size.graph.threshold and users >= setup.stages.survivors
    if not enough:
        talk.losses.counts["too_few_for_a_sum"] += 1
        log.warning(
            "%s: %d nodes with %d users have stayed, too few for their sum to be known: nothing is unmasked",
            training.what,
            len(training.taken),
            users,
        )
    return enough


def _unmask(talk: Conversation, training: MaskedTraining, context: bytes) -> None:
    assert training.among is not None, "nobody takes part"
    unmasking = Unmasking(training)
    talk.carry(unmasking)
    total = training.masked
    failed = unmasked(total, training.ring, training.among, unmasking.status, unmasking.told, context)
    if failed:
        talk.losses.counts["masks_left"] += failed
        log.warning("%s: the secrets of %d nodes could not be put together of shares", unmasking.what, failed)
    else:
        training.fold(total)
