"""The training of a round whose model is split: three stages, and the server's own part of the step between them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
from flwr.app import Array
from typing_extensions import override

from exchanges import records
from exchanges import split as declarations
from exchanges.records import Content, grouped
from federation.conversation import Conversation
from federation.directory import Directory, Share
from federation.exchange import Exchange
from federation.split.middle import back, middle_of, through
from federation.split.stages import Hidden, Judged, Judging, Reading, When, sent, still_here
from federation.training import Training, TrainingOrder
from fedrec.core.errors import PacketError
from fedrec.core.tensors import Tensors
from fedrec.optim.gradient import single_step
from fedrec.wire.packet import Kind, Packet

log = logging.getLogger("fedrec")


class SplitTraining(Training):
    """Asks the cohort to read, lets what it has read through the middle, has it judged, and sends gradients back.

    A node counts that has answered in all stages, whole; of any other nothing is in the step.
    """

    def __init__(self, order: TrainingOrder) -> None:
        """As `Training`."""
        super().__init__(order)
        setup, models, round, kept = order.setup, order.models, order.round, order.kept
        contexts = declarations.contexts_of(setup)
        self._split, self._models = declarations.split_of(setup), models
        self._when = When(setup, models, round, kept, order.rules.max_failures, contexts)
        self._lower = models.model.lower
        self.declared = declarations.SplitTraining(setup, models.model, contexts)
        self._packets = {group: model.packet(round, kept, self._lower) for group, model in models.items()}
        self._cohort: Mapping[int, Share] = {}
        self._asked: dict[str, int] = {}
        self._first_asked = 0
        self._judged: Mapping[tuple[int, str], Judged] = {}
        self._changes: dict[tuple[int, str], Tensors] = {}
        self._gradients: Hidden = {}

    @override
    def carry(self, talk: Conversation, riding: Sequence[Exchange]) -> None:
        reading = Reading(self._when, self._choose)
        talk.carry(*riding, reading)
        above = {
            (node, group): through(self._split, middle_of(self._split, self._models, group), hidden)
            for (node, group), hidden in reading.hidden.items()
        }
        judging = Judging(self._when, {node: reading.shares[node] for node in reading.taken}, above)
        talk.carry(judging)
        self._cohort, self._judged = {node: judging.shares[node] for node in judging.taken}, judging.judged
        self._back(reading.hidden)
        if self._lower:
            super().carry(talk, ())
            return
        self.begin(talk.directory)  # there is nothing below the middle: nobody need be asked once more
        for node in self.shares:
            try:
                self._fold(node, {group: {} for group in self.asked_of(node)})
            except PacketError as error:
                self._counts[error.reason] += 1
                log.warning("node %d: %s: it is left out of the mean", node, error)
                continue
            self.taken.append(node)
        self.require_enough(talk.losses.counts)

    def _choose(self, directory: Directory) -> dict[int, Share]:
        shares = super().participants(directory)
        users = np.concatenate([np.zeros(0, np.int64), *(share.users for share in shares.values())])
        asked = np.bincount(directory.groups[users], minlength=len(self.folds))
        self._asked = dict(zip(self.folds, asked.tolist(), strict=True))
        self._first_asked = len(shares)
        return shares

    @property
    @override
    def _nodes_asked(self) -> int:
        return self._first_asked  # of these the third stage asks only who has answered in both before

    def _back(self, below: Hidden) -> None:
        """What each node's users change of the middle, and their gradients below it."""
        step = single_step(self._setup.recipe_of_run)
        assert step is not None, "the configuration was checked"
        gradients = {}
        for (node, group), judged in self._judged.items():
            middle = middle_of(self._split, self._models, group)
            hidden = below[node, group]
            change, found = back(self._split, middle, hidden, judged.gradients, judged.weights, step)
            self._changes[node, group] = {self._models.model.backbone_name(name): each for name, each in change.items()}
            gradients[node, group] = found
        self._gradients = gradients

    @override
    def participants(self, directory: Directory) -> dict[int, Share]:
        self.folds = {group: self._empty_fold(users) for group, users in self._asked.items()}
        return still_here(self._cohort, directory)

    @override
    def packets(self, node: int) -> Mapping[str, bytes | Array]:
        return {**super().packets(node), **sent(self, self._setup, node, records.GRADIENTS, self._gradients)}

    @override
    def take(self, node: int, answer: Content) -> None:
        forms, lower = self.declared.up(self.participant(node)), dict[str, Tensors]()
        for group in self.asked_of(node):
            name = grouped(records.UPDATE, group)
            lower[group] = forms[name].decode(answer.packet(name), phase=self.phase, round=self.round).tensors
        self._fold(node, lower)
        self._uploaded[node] = int(self.declared.each_up(self.participant(node)).sum())

    def _fold(self, node: int, lower: Mapping[str, Tensors]) -> None:
        """Count a node with what it changes below the middle, in it, and above it: of all its groups or of none."""
        packets = {}
        for group, tensors in lower.items():
            judged = self._judged[node, group]
            whole = judged.update.tensors | self._changes[node, group] | tensors
            packets[group] = Packet(Kind.UPDATE, self.phase, self.round, judged.update.scalars, whole)
        self.fold_packets(node, packets)
