"""How far one run with groups is ahead of another on the same users: of all, over the groups, and in the worst group.

What a user brings is the NDCG@10 of its test item under its group's model, as the codec rounded it, ranked anew from
the run's folder. Errors are standard errors of the mean over users, of differences where the same users are compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from client_app.answers.node import Node, Received
from client_app.answers.recommending import best_items
from client_app.training.engine import GlobalModel
from commands.kept_run import of_run
from fedrec.core.rng import derive
from fedrec.data.split import HeldOut

_AT_ONCE = 1_024
_K = 10


class Gains(NamedTuple):
    """What each user of a run brings.

    Attributes:
        ndcg: float64 [users], the NDCG@10 of its test item.
        groups: int64 [users], its group.
    """

    ndcg: NDArray[np.float64]
    groups: NDArray[np.int64]

    @property
    def by_group(self) -> dict[int, float]:
        """The mean over the users of each group that has any."""
        return {group: float(self.ndcg[self.groups == group].mean()) for group in np.unique(self.groups).tolist()}


class Ahead(NamedTuple):
    """A mean difference and its standard error."""

    difference: float
    error: float


def gains(folder: Path) -> Gains:
    """Of every user of a simulated run, what it brings under the model that its run has chosen."""
    source = of_run(folder)
    node = source.node
    slots = node.users.evaluated("test")
    found, groups = np.zeros(len(slots)), node.groups[slots]
    for group in np.unique(groups).tolist():
        received = source.model_of(group)
        mine = groups == group
        found[mine] = brought(node, as_sent(node, received), received.round, slots[mine], "test")
    return Gains(found, groups)


def brought(node: Node, model: GlobalModel, round: int, slots: NDArray[np.int64], of: HeldOut) -> NDArray[np.float64]:
    """float64 [users], what users bring under the model of a round, by the item that is held out `of` their history."""
    found = np.zeros(len(slots))
    eligible = torch.from_numpy(node.sampler.eligible)
    for start in range(0, len(slots), _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        cohort, positives = node.users.held_out(slots[some], of)
        private, _ = node.starts(cohort.keys, before=round + 1)
        private = node.engine.solve(model, cohort, private, derive(node.secret, "solve", of, round))
        rows, _ = best_items(model, cohort, private, eligible, _K)
        hit = rows.numpy() == positives[:, None]
        found[some] = np.where(hit.any(axis=1), 1 / np.log2(2 + hit.argmax(axis=1)), 0.0)
    return found


def as_sent(node: Node, received: Received) -> GlobalModel:
    """The model of a checkpoint as devices got it for the test."""
    model, form = received.model.cpu(), node.model_format(received.phase)
    exact = {name: model.trainable[name] for name in form.spec}
    seed = derive(node.setup.seed, "codec", received.round)
    packet = form.encode(received.phase, received.round, exact, [0.0] * form.scalars, seed)
    sent = form.decode(packet, phase=received.phase, round=received.round).tensors
    return GlobalModel(model.model, {**model.trainable, **sent}, model.frozen)


def over_all(one: Gains, other: Gains) -> Ahead:
    """How far the first is ahead of the second over all users."""
    return _mean(one.ndcg - other.ndcg)


def over_groups(one: Gains, other: Gains) -> Ahead:
    """The same over the groups, whatever their size."""
    lead = one.ndcg - other.ndcg
    each = [_mean(lead[one.groups == group]) for group in one.by_group]
    return Ahead(fmean(found.difference for found in each), _root(found.error for found in each) / len(each))


def of_worst(one: Gains, other: Gains) -> Ahead:
    """The same of their lowest groups, which need not be the same group."""
    mine, its = (min(found.by_group, key=found.by_group.__getitem__) for found in (one, other))
    if mine == its:
        return _mean((one.ndcg - other.ndcg)[one.groups == mine])
    here, there = one.ndcg[one.groups == mine], other.ndcg[other.groups == its]
    return Ahead(float(here.mean() - there.mean()), _root([_mean(here).error, _mean(there).error]))


def over_seeds(found: Sequence[Ahead]) -> Ahead:
    """The means over seeds. The error stays that of one seed: more of them are about the same users."""
    return Ahead(fmean(each.difference for each in found), fmean(each.error for each in found))


def _mean(values: NDArray[np.float64]) -> Ahead:
    error = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else float("nan")
    return Ahead(float(values.mean()), error)


def _root(errors: Iterable[float]) -> float:
    return math.sqrt(sum(error**2 for error in errors))
