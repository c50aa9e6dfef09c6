"""The training of a round whose updates are masked: the server adds up parts of which it learns nothing."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from flwr.app import Array
from typing_extensions import override

from exchanges import records
from exchanges import secure as declarations
from exchanges.records import Content
from federation.conversation import Conversation
from federation.directory import Directory, Share
from federation.exchange import Exchange
from federation.secure.circle import Participants
from federation.secure.stages import Announcing, Sharing, Unmasking, When
from federation.secure.unmasking import unmasked
from federation.training import Training, TrainingOrder
from fedrec.core.errors import FederationError, PacketError
from fedrec.secure.keys import context_of
from fedrec.secure.ring import Ring, Vector
from fedrec.wire.packet import Kind, Packet

log = logging.getLogger("fedrec")


class MaskedTraining(Training):
    """Asks those who have shared their secrets; their updates are folded as one, once no mask is left on their sum."""

    declared: declarations.MaskedTraining

    def __init__(self, order: TrainingOrder) -> None:
        """As `Training`."""
        super().__init__(order)
        setup, round = order.setup, order.round
        masks = setup.aggregation_of_run.masks
        assert masks is not None, "the run has no secure sums"
        self._masks = masks
        self._when = When(self.phase, round, order.rules.max_failures, context_of(setup.run_key, self.phase, round))
        self._cohort: Mapping[int, Share] = {}
        self._total: Vector | None = None
        self._admit(None)

    def _admit(self, among: Participants | None) -> None:
        """Let these take part, or nobody."""
        self._among = among
        size = among.size if among else None
        self.declared = declarations.MaskedTraining(self._setup, self._trainable, size)

    @override
    def carry(self, talk: Conversation, riding: Sequence[Exchange]) -> None:
        """With all stages of the secure sum. Where too few take part, or are left, no update of the round counts."""
        announcing = Announcing(self._when, super().participants)
        talk.carry(announcing)
        self._cohort = announcing.shares
        if self._cohort and self._called(announcing) and self._among is not None:
            talk.carry(Sharing(self._when, self._among, self._cohort))
            self._among.settle()
            if self._masks.lying and len(self._among.present) < len(self._among.nodes):
                self._refuse_lost(self._among)
        super().carry(talk, riding)
        if self._among is not None and self._may_be_known(self._among):
            survivors = {node: self.shares[node] for node in self.taken}
            unmasking = Unmasking(self._when, self._among, survivors)
            talk.carry(unmasking)
            self._unmask(self._among, unmasking)
        super().require_enough(talk.losses.counts)

    def _called(self, announcing: Announcing) -> bool:
        """Whether those who have announced themselves are enough for a secure sum; then they take part."""
        try:
            self._admit(Participants(announcing.announced, self._masks))
        except FederationError as error:
            self._counts["too_few_for_a_sum"] += 1
            log.warning("%s: no secure sum: %s", self.what, error)
            return False
        return True

    def _refuse_lost(self, among: Participants) -> None:
        """Let nobody take part: where the server may lie, no node sends a part unless all others have shared."""
        self._counts["too_few_for_a_sum"] += 1
        text = (
            "%s: no secure sum: %d of the %d nodes that announced themselves have shared their secrets, and with "
            "aggregation.server=lying all of them have to"
        )
        log.warning(text, self.what, len(among.present), len(among.nodes))
        self._admit(None)

    def _may_be_known(self, among: Participants) -> bool:
        """Whether so many have stayed that the sum may be known."""
        stayed = [len(self.shares[node].users) for node in self.taken]
        nodes, needed = len(stayed), self._setup.stages.survivors
        noised = declarations.noised_users(stayed, self._masks.corrupt, among.size.participants)
        if nodes > among.size.graph.threshold and noised >= needed:
            return True
        self._counts["too_few_for_a_sum"] += 1
        text = (
            "%s: %d nodes with %d users have stayed, %d of them surely with noise that nobody tells (needed: %d), too "
            "few for their sum to be known: nothing is unmasked"
        )
        log.warning(text, self.what, nodes, sum(stayed), noised, needed)
        return False

    def _unmask(self, among: Participants, unmasking: Unmasking) -> None:
        """Take the masks off the sum, and fold it as one node's."""
        assert self._total is not None, "the training was carried"
        total, ring = self._total, self._ring
        ((_, fold),) = self.folds.items()
        try:
            if failed := unmasked(total, ring, among, unmasking.status, unmasking.told, self._when.context):
                self._counts["masks_left"] += failed
                log.warning("%s: the secrets of %d nodes could not be put together of shares", unmasking.what, failed)
                return
            tensors, scalars = ring.values(total)
            if not fold.add(Packet(Kind.UPDATE, self.phase, self.round, scalars, tensors), self._answered):
                self._counts["wrong_loss"] += 1
        except PacketError as error:
            self._counts[error.reason] += 1
            log.warning("%s: the sum is left out: %s", self.what, error)

    @property
    def _ring(self) -> Ring:
        assert self.declared.ring is not None, "nobody takes part"
        return self.declared.ring

    @override
    def participants(self, directory: Directory) -> dict[int, Share]:
        if self._among is None:
            return {}
        self._total = self._ring.zeros()
        here = set(directory.nodes)
        return {node: self._cohort[node] for node in self._among.present if node in here}

    @override
    def packets(self, node: int) -> Mapping[str, bytes | Array]:
        assert self._among is not None, "nobody takes part"
        sealed, present = self._among.sealed_for(node)
        form = self.declared.down(self.participant(node))[records.SEALED]
        tensors = {"sealed": torch.from_numpy(sealed), "present": torch.from_numpy(present)}
        return {**super().packets(node), records.SEALED: form.encode(self.phase, self.round, tensors)}

    @override
    def take(self, node: int, answer: Content) -> None:
        assert self._total is not None, "the training was begun"
        form = self.declared.up(self.participant(node))[records.UPDATE]
        came = form.decode(answer.packet(records.UPDATE), phase=self.phase, round=self.round).tensors
        self._total.add(self._ring.unpacked(came["scalars"].numpy(), came["numbers"].numpy()))
        self._uploaded[node] = int(self.declared.each_up(self.participant(node)).sum())

    @override
    def require_enough(self, counts: Mapping[str, int]) -> None:
        """Raise RoundError if too many nodes have failed; how many users count is known when no mask is left."""
        Exchange.require_enough(self, counts)
