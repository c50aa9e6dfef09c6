"""The cohort engine: all chosen users of a node train at once, in one forward and backward pass.

While they train locally, the users of a round share no trainable state. So every user gets private copies of just the
rows it touches (unique pairs of user and row) and of the small dense tensors, and the sum of the users' losses then has
each user's own gradient in each user's own copies. Element-wise optimisers do not move a row whose gradient has
always been zero, so leaving out the rows that a user never touches changes nothing: the result equals one-by-one
training (`client_app.oracle`). A single user is a cohort of one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from client_app.distinct import distinct
from client_app.engine import Engine, GlobalModel, Limits, Trained, all_finite
from client_app.memory import keep_freed_memory
from client_app.segments import Segments
from client_app.users import Cohort
from fedrec.backbones.base import ScoreContext, Uniform
from fedrec.negatives import NegativeSampler
from fedrec.optim.base import LocalOptimiser, LocalStep, Recipe
from fedrec.optim.local import LocalState
from fedrec.privacy.base import PrivacyMechanism
from fedrec.rng import counter_uniform, derive
from fedrec.tensors import Tensors
from fedrec.updates import NodeUpdate, user_weights

_PAIRS_AT_ONCE = 16_384
"""Pairs of user and training item that are trained at once: bounds memory, and what is in use fits the processor's
cache. A single user is never cut."""


class CohortEngine(Engine):
    """All users of a chunk at once; chunks bound the memory, whatever the size of the cohort."""

    pairs_at_once = _PAIRS_AT_ONCE

    @override
    def __init__(self, recipe: Recipe, sampler: NegativeSampler, privacy: PrivacyMechanism, limits: Limits) -> None:
        super().__init__(recipe, sampler, privacy, limits)
        keep_freed_memory()

    @override
    def train(self, model: GlobalModel, cohort: Cohort, private: Tensors, seed: int) -> Trained:
        update = NodeUpdate(total={name: torch.zeros_like(tensor) for name, tensor in model.trainable.items()})
        after = {name: tensor.clone() for name, tensor in private.items()}
        taken = np.zeros(len(cohort), dtype=np.bool_)
        able = self._able(cohort)
        update.dropped["no_negatives"] = len(cohort) - len(able)
        for users in self._chunks(cohort, able):
            training = LocalTraining(self, model, cohort.select(users), _rows(private, users), seed)
            training.run(self.recipe.local_steps())
            good = training.fold_into(update)
            taken[users[good]] = True
            for name, tensor in training.private.items():
                after[name][users[good]] = tensor[good]
        return Trained(update, after, taken)

    @override
    def solve(self, model: GlobalModel, cohort: Cohort, private: Tensors, seed: int) -> Tensors:
        after = {name: tensor.clone() for name, tensor in private.items()}
        steps = self.recipe.solve_steps()
        if not steps:
            return after
        able = self._able(cohort)
        for users in self._chunks(cohort, able):
            training = LocalTraining(self, model, cohort.select(users), _rows(private, users), seed)
            training.run(steps)
            for name, tensor in training.private.items():
                after[name][users] = tensor
        return after

    def _able(self, cohort: Cohort) -> NDArray[np.int64]:
        """The users who have a negative to learn from."""
        return np.flatnonzero(self.sampler.unknown(cohort.offsets, cohort.items).counts)

    def _chunks(self, cohort: Cohort, users: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """The users in chunks of about `pairs_at_once` pairs."""
        ends = np.cumsum(cohort.lengths[users])
        start = 0
        while start < len(users):
            done = ends[start - 1] if start else 0
            end = max(start + 1, int(np.searchsorted(ends, done + self.pairs_at_once, side="right")))
            yield users[start:end]
            start = end


def _rows(tensors: Tensors, users: NDArray[np.int64]) -> Tensors:
    chosen = torch.from_numpy(users)
    return {name: tensor[chosen] for name, tensor in tensors.items()}


@dataclass
class _Copies:
    """Each user's own copies of the rows of one table that it touches.

    Attributes:
        values: [copies, width], trained.
        rows: int64 [copies], the table's row that each copies.
        users: int64 [copies], the user it belongs to.
        reads: For each step, int64 [segments, items, r]: the copies that the step's items read.
    """

    values: Tensor
    rows: Tensor
    users: Tensor
    reads: list[Tensor]


class LocalTraining:
    """One chunk of users, each with its own copies of everything that it trains.

    Attributes:
        private: The users' private tensors [users, ...].
        loss: [users], each user's loss before its first step.
    """

    def __init__(self, engine: Engine, model: GlobalModel, cohort: Cohort, private: Tensors, seed: int) -> None:
        self._engine = engine
        self._model = model
        self._cohort = cohort
        self._seed = seed
        self.private = {name: tensor.clone() for name, tensor in private.items()}
        self.loss = torch.zeros(len(cohort))
        # Tensors that the users only read are shared; those that they train are copied in `run`.
        self._dense = model.model.dense(model.trainable)
        self._shared = model.model.shared(model.trainable)
        self._copies: dict[str, _Copies] = {}
        self._own = False
        self._table: Tensor | None = None

    def run(self, steps: Sequence[LocalStep]) -> None:
        """Take the steps, all users at once."""
        dtype = next(iter(self._model.trainable.values())).dtype
        self._segments = Segments.of(self._cohort, dtype)
        items = self._draw(len(steps))
        self._own = any(step.shared for step in steps)
        if self._own:
            self._copy(items)
        states: dict[tuple[LocalOptimiser, str, str], LocalState] = {}
        for number, step in enumerate(steps):
            moving = self._moving(step)
            for _, tensor in moving:
                tensor.requires_grad_(True)
            losses = self._losses(number, items[number])
            if number == 0:
                self.loss = losses.detach()
            gradients = torch.autograd.grad(losses.sum(), [tensor for _, tensor in moving])
            with torch.no_grad():
                for ((group, name), tensor), gradient in zip(moving, gradients, strict=True):
                    tensor.requires_grad_(False)
                    key = (step.optimiser, group, name)
                    if key not in states:
                        states[key] = LocalState(step.optimiser, tensor)
                    states[key].step(tensor, gradient)

    def _draw(self, steps: int) -> list[Tensor]:
        """For each step the items [segments, length, 1 + q]: the positive, then its negatives."""
        cohort, engine = self._cohort, self._engine
        unknown = engine.sampler.unknown(cohort.offsets, cohort.items)
        drawn = []
        for step in range(steps):
            negatives = unknown.draw(self._seed, cohort.keys, cohort.lengths, step, engine.recipe.negatives).items
            drawn.append(self._segments.fill(np.concatenate([cohort.items[:, None], negatives], axis=1)))
        return drawn

    def _copy(self, items: list[Tensor]) -> None:
        """Give every user its own copies of what it trains."""
        embedding, frozen = self._model.model.embedding, self._model.frozen
        read = [embedding.rows(step.flatten(1), frozen) for step in items]
        for name, table in self._model.model.tables(self._model.trainable).items():
            rows = torch.stack([step[name] for step in read])
            users = self._segments.owner[None, :, None, None]
            pairs = (users * len(table) + rows).flatten().numpy()
            found, place = distinct(pairs, len(self._cohort) * len(table))
            owner, row = (torch.from_numpy(part) for part in np.divmod(found, len(table)))
            reads = torch.from_numpy(place).reshape(rows.shape)
            self._copies[name] = _Copies(table.index_select(0, row), row, owner, list(reads))
        self._dense = {name: _repeated(tensor, len(self._cohort)) for name, tensor in self._dense.items()}
        self._shared = {name: _repeated(tensor, len(self._cohort)) for name, tensor in self._shared.items()}

    def _moving(self, step: LocalStep) -> list[tuple[tuple[str, str], Tensor]]:
        groups: dict[str, Tensors] = {"private": self.private} if step.private else {}
        if step.shared:
            tables = {name: copies.values for name, copies in self._copies.items()}
            groups |= {"table": tables, "dense": self._dense, "shared": self._shared}
        return [((group, name), tensor) for group, tensors in groups.items() for name, tensor in tensors.items()]

    def _losses(self, step: int, items: Tensor) -> Tensor:
        """Each user's loss [users]."""
        owner, model = self._segments.owner, self._model
        vectors = self._vectors(step, items.flatten(1))
        private = {name: tensor[owner] for name, tensor in self.private.items()}
        shared = {name: tensor[owner] for name, tensor in self._shared.items()} if self._own else self._shared
        context = ScoreContext(training=True, uniform=self._uniform(step, items.shape[2], vectors.dtype))
        scores = model.model.backbone.score(shared, private, vectors, context).reshape(items.shape)
        losses = self._engine.recipe.loss(scores[..., 0], scores[..., 1:], self._segments.mask)
        per_user = torch.zeros(len(self._cohort), dtype=losses.dtype)
        return per_user.index_add(0, owner, losses * self._segments.share)

    def _uniform(self, step: int, per_pair: int, dtype: torch.dtype) -> Uniform:
        """Draws for the items [segments, length * per_pair] of a step, as the contract of `ScoreContext` has them."""
        segments = self._segments

        def uniform(name: str, width: int) -> Tensor:
            pairs = segments.pairs
            place = (pairs[..., None] * per_pair + np.arange(per_pair)).reshape(len(pairs), -1, 1)
            keys = self._cohort.keys[segments.owner.numpy()][:, None, None]
            drawn = counter_uniform(derive(self._seed, "score", name), keys, step, place, np.arange(width))
            return torch.from_numpy(drawn).to(dtype)

        return uniform

    def _vectors(self, step: int, items: Tensor) -> Tensor:
        """Item vectors [segments, items, dim] from the users' own copies; shared ones if no step trains them."""
        if not self._own:
            return self._read(items)
        rows = {name: _gather(copies.values, copies.reads[step]) for name, copies in self._copies.items()}
        dense = {name: tensor[self._segments.owner] for name, tensor in self._dense.items()}
        return self._model.model.embed(rows, dense, self._model.frozen, items)

    def _read(self, items: Tensor) -> Tensor:
        """Vectors of the model as it was received, each worked out once where the items are read often."""
        model = self._model
        if model.model.embedding.n_items > items.numel():
            return model.item_vectors(model.trainable, items)
        if self._table is None:
            self._table = model.item_vectors(model.trainable, torch.arange(model.model.embedding.n_items))
        return _gather(self._table, items)

    def fold_into(self, update: NodeUpdate) -> NDArray[np.bool_]:
        """Add the users' weighted deltas to the node's update; who was taken (bool [users]), the others are counted."""
        with torch.no_grad():
            if self._engine.privacy.changes_updates:
                return self._fold_one_by_one(update)
            return self._fold_at_once(update)

    def _fold_at_once(self, update: NodeUpdate) -> NDArray[np.bool_]:
        trainable, users = self._model.trainable, len(self._cohort)
        limits = self._engine.limits
        rows = {name: (copies, copies.values - trainable[name][copies.rows]) for name, copies in self._copies_by_name()}
        whole = {name: tensor - trainable[name] for name, tensor in self._whole_by_name()}
        squared = torch.zeros(users, dtype=torch.float64)
        for copies, delta in rows.values():
            squared.index_add_(0, copies.users, torch.linalg.vecdot(delta, delta).double())
        for delta in whole.values():
            squared += delta.reshape(users, -1).double().square().sum(1)
        finite = squared.isfinite() & self.loss.isfinite() & all_finite(self.private)
        good = finite & (squared <= limits.max_update_norm**2)
        update.dropped["non_finite"] += int((~finite).sum())
        update.dropped["too_large"] += int((finite & ~good).sum())
        weight = torch.from_numpy(user_weights(self._cohort.lengths, limits.weight_cap)) * good
        for name, (copies, delta) in rows.items():
            if not good.all():  # what was dropped may be NaN, and zero times NaN is not zero
                delta[~good[copies.users]] = 0
            delta *= weight.to(delta.dtype)[copies.users, None]
            update.total[name].index_add_(0, copies.rows, delta)
        for name, delta in whole.items():
            update.total[name] += torch.tensordot(weight[good].to(delta.dtype), delta[good], dims=1)
        update.weight += float(weight.sum())
        update.users += int(good.sum())
        update.examples += int(self._cohort.lengths[good.numpy()].sum())
        update.loss += float((weight[good] * self.loss[good].double()).sum())
        return good.numpy()

    def _fold_one_by_one(self, update: NodeUpdate) -> NDArray[np.bool_]:
        """As the oracle does it: a mechanism may change every number of a user's delta, so each is formed whole."""
        trainable, limits = self._model.trainable, self._engine.limits
        good = np.zeros(len(self._cohort), dtype=np.bool_)
        sane = all_finite(self.private)
        for user, key in enumerate(self._cohort.keys):
            delta = {name: tensor[user] - trainable[name] for name, tensor in self._whole_by_name()}
            for name, copies in self._copies_by_name():
                mine = copies.users == user
                delta[name] = torch.zeros_like(trainable[name])
                delta[name][copies.rows[mine]] = copies.values[mine] - trainable[name][copies.rows[mine]]
            delta = self._engine.privacy.protect_update(delta, derive(self._seed, "privacy", int(key)))
            examples = int(self._cohort.lengths[user])
            loss = float(self.loss[user]) if sane[user] else math.nan
            good[user] = update.add(delta, examples, loss, limits.weight_cap, limits.max_update_norm)
        return good

    def _copies_by_name(self) -> list[tuple[str, _Copies]]:
        return [(self._model.model.embedding_name(name), copies) for name, copies in self._copies.items()]

    def _whole_by_name(self) -> list[tuple[str, Tensor]]:
        model = self._model.model
        dense = [(model.embedding_name(name), tensor) for name, tensor in self._dense.items()]
        return dense + [(model.backbone_name(name), tensor) for name, tensor in self._shared.items()]


def _gather(values: Tensor, places: Tensor) -> Tensor:
    """`values[places]`, whose gradient is cheaper to take."""
    return values.index_select(0, places.flatten()).reshape(*places.shape, values.shape[1])


def _repeated(tensor: Tensor, users: int) -> Tensor:
    return tensor.expand(users, *tensor.shape).clone()
