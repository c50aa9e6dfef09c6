"""The exchanges of a run whose backbone is split: hidden states up and down, then gradients of them.

A message brings the part of the model that its stage needs, and no more. What is below the middle is needed twice, for
a client's process ends after each message, and is sent twice: kept on disk it would be one more thing to lose, and it
is less than the hidden states of one history.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from typing_extensions import override

from exchanges import members, records
from exchanges.declaration import Declaration, Participant
from exchanges.records import grouped, ungrouped
from fedrec.backbones.split import Split
from fedrec.core.tensors import Spec
from fedrec.wire.crossing import crossing_format
from fedrec.wire.packet import Kind, PacketFormat
from fedrec.wire.protocol import Setup, frozen_format
from peft_embeddings.model import Model


def split_of(setup: Setup) -> Split:
    """The parts of the run's backbone."""
    split = setup.backbone_of_run.split
    assert split is not None, "the backbone of the run is split"
    return split


def whole(setup: Setup) -> Setup:
    """The same run as a machine would carry it out that has all parts of a backbone which is split."""
    if setup.backbone_of_run.split is None:
        return setup
    return dataclasses.replace(setup, backbone={**setup.backbone, "split": None})


def contexts_of(setup: Setup) -> int:
    """How many contexts of a user's history are read in a round."""
    contexts = setup.recipe_of_run.contexts
    return 1 if contexts is None else contexts.count


def lower_update_format(lower: Spec) -> PacketFormat:
    """The sum of users' changes below the middle, which are counted already."""
    return PacketFormat(Kind.UPDATE, lower, frozen_format({}).codec, 0)


class _Stage(Declaration):
    """A stage of training or ranking."""

    def __init__(self, setup: Setup, model: Model, contexts: int) -> None:
        """Of a model, of so many contexts of each user."""
        self.setup = setup
        self.model = model
        self.contexts = contexts
        self.split = split_of(setup)

    def each_group(self, name: str, of: Participant, form: PacketFormat | None = None) -> dict[str, PacketFormat]:
        """A packet for each group, by default of what crosses a boundary."""
        return {
            grouped(name, self.setup.groups[group]): form or crossing_format(self.split, users * self.contexts)
            for group, users in of.by_group.items()
        }

    def part(self, to: Participant, spec: Spec) -> dict[str, PacketFormat]:
        """A part of the models of the participant's groups; with nothing in it, its packet still says the round."""
        return members.models_down(self.setup, spec, to)


class Reading(_Stage):
    """Stage 1: what is below the middle down, hidden states up."""

    kind = records.READ

    @override
    def down(self, to: Participant) -> Mapping[str, PacketFormat]:
        return self.part(to, self.model.lower)

    @override
    def up(self, by: Participant) -> Mapping[str, PacketFormat]:
        return self.each_group(records.HIDDEN, by)


class Judging(_Stage):
    """Stage 2: hidden states and what is above the middle down; gradients and the update of the latter up."""

    kind = records.JUDGE

    @override
    def down(self, to: Participant) -> Mapping[str, PacketFormat]:
        return {**self.part(to, self.model.upper), **self.each_group(records.HIDDEN, to)}

    @override
    def up(self, by: Participant) -> Mapping[str, PacketFormat]:
        found: dict[str, PacketFormat] = {}
        for group, users in by.by_group.items():
            name = self.setup.groups[group]
            found[grouped(records.UPDATE, name)] = self.setup.update_format(self.model.upper, users)
            found[grouped(records.GRADIENTS, name)] = crossing_format(self.split, users * self.contexts, users)
        return found


class SplitTraining(_Stage):
    """Stage 3: gradients and what is below the middle down, the update of the latter up."""

    kind = records.TRAIN

    @override
    def down(self, to: Participant) -> Mapping[str, PacketFormat]:
        return {**self.part(to, self.model.lower), **self.each_group(records.GRADIENTS, to)}

    @override
    def up(self, by: Participant) -> Mapping[str, PacketFormat]:
        return self.each_group(records.UPDATE, by, lower_update_format(self.model.lower))


class SplitRanking(_Stage):
    """A ranking's second message: hidden states and what is above the middle down, sums of metrics up."""

    kind = records.EVALUATE

    def __init__(self, setup: Setup, model: Model, splits: Sequence[str]) -> None:
        """Of a model, and of these splits."""
        super().__init__(setup, model, 1)
        self.splits = tuple(splits)

    @override
    def down(self, to: Participant) -> Mapping[str, PacketFormat]:
        return {**self.part(to, self.model.upper), **self.each_group(records.HIDDEN, to)}

    @override
    def up(self, by: Participant) -> Mapping[str, PacketFormat]:
        return {
            name: form
            for split in self.splits
            for name, form in self.each_group(records.METRICS + split, by, self.setup.metrics_format()).items()
        }


def stages_of(setup: Setup, model: Model) -> list[Declaration]:
    """The stages of a round's training."""
    contexts = contexts_of(setup)
    stages: list[Declaration] = [Reading(setup, model, contexts), Judging(setup, model, contexts)]
    return [*stages, SplitTraining(setup, model, contexts)] if model.lower else stages


def crossing_bytes(stages: Sequence[Declaration]) -> int:
    """What of the bytes of a user's device in these stages hidden states are, or gradients of them."""
    device = Participant()
    forms = [form for stage in stages for form in (*stage.down(device).items(), *stage.up(device).items())]
    return sum(form.size() for name, form in forms if ungrouped(name) in records.CROSSING)
