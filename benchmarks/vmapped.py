"""The other way to train a cohort at once: `torch.func.vmap` over the loss of one user.

Every user is padded to the longest of its chunk, in pairs and in private copies of rows, because `vmap` knows no ragged
dimension. Users are sorted by length first, so that a chunk wastes little. It is here to be measured, and gives the
same numbers as the cohort engine; it serves any embedding and backbone, but neither privacy mechanisms nor limits.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import grad_and_value, vmap

from benchmarks.task import LIMITS, Task
from client_app.homes.users import Cohort
from fedrec.backbones.base import ScoreContext
from fedrec.core.tensors import Tensors
from fedrec.data.negatives import sorted_distinct
from fedrec.optim.local import LocalState

Parameters = dict[str, Tensors]


def train(task: Task, cohort: Cohort, private: Tensors, seed: int, pairs_at_once: int) -> tuple[Tensors, Tensors]:
    """The weighted sum of the users' deltas, and their private tensors afterwards."""
    total = {name: torch.zeros_like(tensor) for name, tensor in task.model.trainable.items()}
    after = {name: tensor.clone() for name, tensor in private.items()}
    for users in _chunks(cohort.lengths, pairs_at_once):
        chosen = torch.from_numpy(users)
        mine = {name: tensor[chosen] for name, tensor in private.items()}
        for name, tensor in _train_chunk(task, cohort.select(users), mine, seed, total).items():
            after[name][chosen] = tensor
    return total, after


def _chunks(lengths: NDArray[np.int64], pairs_at_once: int) -> list[NDArray[np.int64]]:
    """Users in ascending order of length, in chunks of at most that many pairs after padding (or one user)."""
    order = np.argsort(lengths, kind="stable")
    chunks, start = [], 0
    for end in range(1, len(order) + 1):
        if end == len(order) or lengths[order[end]] * (end + 1 - start) > pairs_at_once:
            chunks.append(order[start:end])
            start = end
    return chunks


def _train_chunk(task: Task, cohort: Cohort, private: Tensors, seed: int, total: Tensors) -> Tensors:
    model, recipe, steps = task.model, task.recipe, task.recipe.local_steps()
    users, lengths = len(cohort), cohort.lengths
    unknown = task.sampler.unknown(cohort.offsets, cohort.items)
    owner = np.repeat(np.arange(users), lengths)
    place = owner * lengths.max() + np.arange(len(owner)) - np.repeat(cohort.offsets[:-1], lengths)
    mask = np.zeros(users * int(lengths.max()))
    mask[place] = 1.0
    dtype = next(iter(model.trainable.values())).dtype
    weights = torch.from_numpy(mask.reshape(users, -1)).to(dtype)
    items = []
    for step in range(len(steps)):
        drawn = unknown.draw(seed, cohort.keys, lengths, step, recipe.negatives).items
        both = np.concatenate([cohort.items[:, None], drawn], axis=1)
        # Padding repeats an item of the same user, so it adds no row.
        filled = np.repeat(cohort.items[cohort.offsets[:-1]], mask.size // users)[:, None].repeat(both.shape[1], 1)
        filled[place] = both
        items.append(torch.from_numpy(filled).reshape(users, -1, both.shape[1]))
    read = [model.model.embedding.rows(step, model.frozen) for step in items]
    copied = {name: _Copied(table, [step[name] for step in read]) for name, table in _tables(task).items()}
    parameters: Parameters = {
        "private": {name: tensor.clone() for name, tensor in private.items()},
        "table": {name: copies.values for name, copies in copied.items()},
        "dense": _repeated(model.model.dense(model.trainable), users),
        "shared": _repeated(model.model.shared(model.trainable), users),
    }

    def loss(own: Parameters, index: Tensors, ids: Tensor, real: Tensor) -> Tensor:
        rows = {name: own["table"][name][places].flatten(0, 1) for name, places in index.items()}
        fixed = model.model.fixed_rows(model.frozen, ids.flatten())
        vectors = model.model.embed(rows, own["dense"], model.frozen, fixed)
        scores = model.model.backbone.score(own["shared"], own["private"], vectors, ScoreContext(training=True))
        scores = scores.reshape(ids.shape)
        return recipe.loss(scores[:, 0], scores[:, 1:], real)

    gradients = vmap(grad_and_value(loss))
    states: dict[tuple[object, str, str], LocalState] = {}
    for number, step in enumerate(steps):
        index = {name: copies.places[number] for name, copies in copied.items()}
        found, _ = gradients(parameters, index, items[number], weights)
        for group, tensors in parameters.items():
            if step.private if group == "private" else step.shared:
                for name, tensor in tensors.items():
                    key = (step.optimiser, group, name)
                    if key not in states:
                        states[key] = LocalState(step.optimiser, tensor)
                    states[key].step(tensor, found[group][name])
    weight = torch.from_numpy(np.minimum(lengths, LIMITS.weight_cap)).to(dtype)
    for name, copies in copied.items():
        full = model.model.embedding_name(name)
        delta = (copies.values - model.trainable[full][copies.rows]) * weight[:, None, None]
        total[full].index_add_(0, copies.rows[copies.real], delta[copies.real])
    for group, naming in (("dense", model.model.embedding_name), ("shared", model.model.backbone_name)):
        for name, tensor in parameters[group].items():
            total[naming(name)] += torch.tensordot(weight, tensor - model.trainable[naming(name)], dims=1)
    return parameters["private"]


class _Copied:
    """Private copies of one table's rows, [users, most rows of a user, width]."""

    def __init__(self, table: Tensor, read: list[Tensor]) -> None:
        shape = read[0].shape
        users, size = shape[0], len(table)
        stacked = torch.stack(read).numpy()
        pairs = (np.arange(users).reshape(1, users, *([1] * (stacked.ndim - 2))) * size + stacked).reshape(-1)
        distinct = sorted_distinct(pairs)
        count = np.bincount(distinct // size, minlength=users)
        first = np.cumsum(count) - count
        owners = distinct // size
        slot = np.arange(len(distinct)) - first[owners]
        rows = np.zeros((users, int(count.max())), dtype=np.int64)
        real = np.zeros(rows.shape, dtype=np.bool_)
        rows[owners, slot], real[owners, slot] = distinct % size, True
        places = (np.searchsorted(distinct, pairs) - first[pairs // size]).reshape(stacked.shape)
        self.rows, self.real = torch.from_numpy(rows), torch.from_numpy(real)
        self.values = table[self.rows]
        self.places = list(torch.from_numpy(places))


def _tables(task: Task) -> Tensors:
    return task.model.model.tables(task.model.trainable)


def _repeated(tensors: Tensors, users: int) -> Tensors:
    return {name: tensor.expand(users, *tensor.shape).clone() for name, tensor in tensors.items()}
