"""The training of a round whose updates are masked: the server adds up parts of which it learns nothing."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping

import torch
from flwr.app import Array
from typing_extensions import override

from exchanges import records
from exchanges import secure as declarations
from exchanges.records import Content
from federation.cohorts.base import CohortSampling
from federation.directory import Directory, Share
from federation.exchange import Exchange
from federation.group_models import GroupModels
from federation.secure.circle import Participants
from federation.training import Training
from fedrec.config.schema import FederationConfig
from fedrec.core.errors import PacketError
from fedrec.secure.ring import Ring, Vector
from fedrec.wire.packet import Kind, Packet
from fedrec.wire.protocol import UPDATE_SCALARS, Setup

log = logging.getLogger("fedrec")


class MaskedTraining(Training):
    """Asks those who have shared their secrets; their updates are folded as one, once no mask is left on their sum.

    Attributes:
        among: Who takes part; None: nobody can.
    """

    declared: declarations.MaskedTraining

    def __init__(
        self,
        setup: Setup,
        models: GroupModels,
        rules: FederationConfig,
        sampling: CohortSampling,
        secret: int,
        round: int,
        kept: int,
        counts: Counter[str],
    ) -> None:
        """As `Training`."""
        super().__init__(setup, models, rules, sampling, secret, round, kept, counts)
        self.among: Participants | None = None
        self._masked: Vector | None = None
        self._let_in(None)

    def _let_in(self, among: Participants | None) -> None:
        self.among = among
        size = among.size if among else None
        self.declared = declarations.MaskedTraining(self._setup, self._trainable, size)

    def chosen(self, directory: Directory) -> dict[int, Share]:
        """The cohort of the round."""
        return super().participants(directory)

    def open(self, among: Participants) -> None:
        """Let these take part."""
        self._let_in(among)

    @property
    def ring(self) -> Ring:
        """The numbers of the sum."""
        assert self.declared.ring is not None, "nobody takes part"
        return self.declared.ring

    @property
    def masked(self) -> Vector:
        """The sum of all parts that have come, under their masks."""
        assert self._masked is not None, "the training was not begun"
        return self._masked

    @override
    def participants(self, directory: Directory) -> dict[int, Share]:
        if self.among is None:
            return {}
        self._masked = self.ring.zeros()
        cohort = self.chosen(directory)
        return {node: cohort[node] for node in self.among.present if node in cohort}

    @override
    def packets(self, node: int) -> Mapping[str, bytes | Array]:
        assert self.among is not None, "nobody takes part"
        sealed, present = self.among.sealed_for(node)
        form = self.declared.down(self.participant(node))[records.SEALED]
        tensors = {"sealed": torch.from_numpy(sealed), "present": torch.from_numpy(present)}
        return {**super().packets(node), records.SEALED: form.encode(self.phase, self.round, tensors)}

    @override
    def take(self, node: int, answer: Content) -> None:
        form = self.declared.up(self.participant(node))[records.UPDATE]
        came = form.decode(answer.packet(records.UPDATE), phase=self.phase, round=self.round).tensors
        self.masked.add(self.ring.unpacked(came["scalars"].numpy(), came["numbers"].numpy()))
        self._uploaded[node] = int(self.declared.each_up(self.participant(node)).sum())

    @override
    def require_enough(self, counts: Mapping[str, int]) -> None:
        """Raise RoundError if too many nodes have failed; how many users count is known when no mask is left."""
        Exchange.require_enough(self, counts)

    def fold(self, total: Vector) -> bool:
        """Fold the sum of all parts, without masks, as one node's; whether it is one that so many users can have."""
        tensors, scalars = self.ring.values(total)
        packet = Packet(Kind.UPDATE, self.phase, self.round, scalars[: len(UPDATE_SCALARS)], tensors)
        ((_, fold),) = self.folds.items()
        try:
            if not fold.add(packet, sum(len(self.shares[node].users) for node in self.taken)):
                self._counts["wrong_loss"] += 1
        except PacketError as error:
            self._counts[error.reason] += 1
            log.warning("the sum of round %d is none that its users can have, and is left out: %s", self.round, error)
            return False
        return True

    def settle(self, counts: Mapping[str, int]) -> None:
        """Raise RoundError if the updates of too few users count; to be called at the end."""
        super().require_enough(counts)
