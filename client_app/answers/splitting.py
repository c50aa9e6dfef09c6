"""What a client answers in a run whose backbone is split: each stage needs the setup, and nothing of the one before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client_app.answers.granting import require_memory, require_users
from client_app.answers.handling import rival_of, round_of, slots_of
from client_app.answers.ranking import Only, evaluate
from client_app.homes.users import Cohort
from client_app.training.engine import GlobalModel
from client_app.training.split import read_all, states_of_all
from exchanges import records
from exchanges.records import Content, grouped
from exchanges.split import contexts_of, lower_update_format, split_of
from fedrec.backbones.split import HIDDEN
from fedrec.core.rng import derive
from fedrec.data.split import HeldOut
from fedrec.wire.crossing import crossed, crossing, crossing_format
from fedrec.wire.packet import Packet

if TYPE_CHECKING:
    from client_app.answers.node import Node, Received


class _Group(NamedTuple):
    """Users of one group, and what came for them."""

    name: str
    slots: NDArray[np.int64]
    received: Received

    @property
    def model(self) -> GlobalModel:
        return self.received.model.cpu()


def read(node: Node, content: Content, of: HeldOut | None) -> Mapping[str, bytes]:
    """Stage 1: hidden states below the middle, of what the users read in a round, or before they are ranked."""
    answer: dict[str, bytes] = {}
    for group in _groups(node, content, lower=True):
        if of is None:
            hidden = node.split_engine.below(group.model, _training(node, group), _seed(node, group))
        else:
            ranked = _ranked(node, group, of)
            held = iter(read_all(group.model, node.users.held_out(group.slots[ranked], of)[0]))
            nothing = torch.zeros(0, split_of(node.setup).width)
            hidden = [next(held) if there else nothing for there in ranked.tolist()]
        answer[grouped(records.HIDDEN, group.name)] = _encoded(node, group, hidden)
    return answer


def judge(node: Node, content: Content) -> Mapping[str, bytes]:
    """Stage 2: gradients above the middle, and the update of what is there."""
    answer: dict[str, bytes] = {}
    for group in _groups(node, content, lower=False):
        cohort, users = _training(node, group), len(group.slots)
        contexts = contexts_of(node.setup)
        like = node.split_engine.states(group.model, cohort, _seed(node, group))
        hidden = crossed(_crossing(node, content, records.HIDDEN, group, contexts), like)
        _, trained_before = node.starts(cohort.keys, before=group.received.round)
        judged = node.split_engine.above(group.model, cohort, hidden, _seed(node, group))
        counted = judged.weights > 0
        node.private_store.save(group.received.round, cohort.keys[counted], {}, group.received.checkpoint_round)
        if node.setup.stages.tells:
            judged.update.cold = int((~trained_before & counted).sum())
        if node.policy:
            require_users("an update", judged.update.users, node.policy.min_users_in_update)
        model, split = group.received.model.model, split_of(node.setup)
        form = node.setup.update_format(model.upper, users)
        phase, round = group.received.phase, group.received.round
        answer[grouped(records.UPDATE, group.name)] = form.encode(
            phase, round, judged.update.total, judged.update.scalars(), seed=None
        )
        weights = torch.from_numpy(judged.weights)
        answer[grouped(records.GRADIENTS, group.name)] = crossing_format(split, users * contexts, users).encode(
            phase, round, crossing(split, judged.gradients, weights)
        )
    return answer


def train(node: Node, content: Content) -> Mapping[str, bytes]:
    """Stage 3: the update of what is below the middle."""
    answer: dict[str, bytes] = {}
    for group in _groups(node, content, lower=True):
        cohort, seed = _training(node, group), _seed(node, group)
        like = node.split_engine.states(group.model, cohort, seed)
        gradients = crossed(_crossing(node, content, records.GRADIENTS, group, contexts_of(node.setup)), like)
        total = node.split_engine.under(group.model, cohort, gradients, seed)
        form = lower_update_format(group.received.model.model.lower)
        answer[grouped(records.UPDATE, group.name)] = form.encode(group.received.phase, group.received.round, total)
    return answer


def rank(node: Node, content: Content, after: int, of: HeldOut) -> Mapping[str, bytes]:
    """Rank users with what has become of their hidden states."""
    answer: dict[str, bytes] = {}
    rival = rival_of(content, node)
    split = split_of(node.setup)
    for group in _groups(node, content, lower=False):
        ranked = _ranked(node, group, of)
        held = iter(states_of_all(group.model, node.users.held_out(group.slots[ranked], of)[0]))
        like = [next(held) if there else 0 for there in ranked.tolist()]
        hidden = crossed(_crossing(node, content, records.HIDDEN, group, 1), like)
        padded = torch.zeros(len(hidden), split.length, split.width)
        for row, tensor in enumerate(hidden):
            padded[row, : len(tensor)] = tensor
        only = Only(group.slots, {HIDDEN: padded})
        metrics, lead = evaluate(node, group.received, after, of, rival if of == "test" else None, only)
        answer[grouped(records.METRICS + of, group.name)] = metrics
        if lead is not None:
            answer[grouped(records.LEAD, group.name)] = lead.packet()
    return answer


def _groups(node: Node, content: Content, *, lower: bool) -> Iterator[_Group]:
    """The users whom a message names, by group, with the part of the model that it brings."""
    slots, phase = slots_of(content, len(node.users)), node.phase(content.integer("phase"))
    model = node.model(phase)
    for group in np.unique(node.groups[slots]).tolist():
        name = node.setup.groups[group]
        packet, frozen = content.packet(grouped(records.MODEL, name)), content.text(grouped(records.HOLDS, name))
        part = model.lower if lower else model.upper
        received = node.receive(phase, round_of(content), group, packet, frozen, part)
        yield _Group(name, slots[node.groups[slots] == group], received)


def _ranked(node: Node, group: _Group, of: HeldOut) -> NDArray[np.bool_]:
    """Who of them has something held out for that split; who has not reads nothing before a ranking."""
    return np.isin(group.slots, node.users.evaluated(of))


def _training(node: Node, group: _Group) -> Cohort:
    """What users train on, if the site's policy lets them."""
    cohort = node.users.training(group.slots)
    if node.policy:
        require_users("hidden states", len(cohort), node.policy.min_users_in_update)
        require_memory(node, node.policy, cohort, trains=True)
    return cohort


def _seed(node: Node, group: _Group) -> int:
    """As in a training of one message."""
    return derive(node.secret, "train", group.received.round)


def _crossing(node: Node, content: Content, name: str, group: _Group, contexts: int) -> Packet:
    form = crossing_format(split_of(node.setup), len(group.slots) * contexts)
    return form.decode(
        content.packet(grouped(name, group.name)), phase=group.received.phase, round=group.received.round
    )


def _encoded(node: Node, group: _Group, hidden: list[Tensor]) -> bytes:
    split = split_of(node.setup)
    form = crossing_format(split, len(hidden))
    return form.encode(group.received.phase, group.received.round, crossing(split, hidden))
