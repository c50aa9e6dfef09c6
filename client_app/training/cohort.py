"""The cohort engine: all chosen users of a node train at once, in one forward and backward pass.

While they train locally, the users of a round share no trainable state. So every user gets private copies of just the
rows it touches and of the small dense tensors, and the sum of the users' losses then has each user's own gradient in
each user's own copies. Element-wise optimisers do not move a row whose gradient has always been zero, so leaving out
the rows that a user never touches changes nothing: the result equals one-by-one training
(`client_app.training.oracle`). A single user is a cohort of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import override

from client_app.homes.users import Cohort
from client_app.training.contexts import Reading, reading, whole
from client_app.training.engine import Collected, Engine, GlobalModel, Trained, moving
from client_app.training.local_training import LocalTraining
from client_app.training.memory import keep_freed_memory
from client_app.training.own_loss import OwnLossTraining
from client_app.training.segments import segment_length
from client_app.training.timing import Timer
from fedrec.core.tensors import Tensors
from fedrec.data.negatives import NegativeSampler, UnknownItems
from fedrec.optim.base import LocalStep, Recipe
from fedrec.stages.chain import Stages
from fedrec.stages.draws import Draws
from peft_embeddings.model import Model

_PER_PAIR = 4
"""Vectors that a pair holds: the item's, its user's copy of the rows, and the gradients of both."""


class CohortEngine(Engine):
    """All users of a chunk at once; chunks of `pairs_at_once` bound the memory, whatever the size of the cohort.

    A single user is never cut.
    """

    @override
    def __init__(
        self,
        recipe: Recipe,
        sampler: NegativeSampler,
        stages: Stages,
        pairs_at_once: int = 65_536,
        fresh: bool = False,
    ) -> None:
        super().__init__(recipe, sampler, stages, pairs_at_once, fresh)
        keep_freed_memory()

    @override
    def train(
        self, model: GlobalModel, cohort: Cohort, private: Tensors, seed: int, timer: Timer | None = None
    ) -> Trained:
        collected = Collected(self.stages, model, private, cohort.keys, Draws(seed, self.fresh), timer)
        steps = moving(self.recipe.local_steps(), model.model.backbone)
        read = reading(cohort, self.recipe, seed)
        for users, training in self._run(steps, model, cohort, read, private, seed):
            for part, given in training.contributions(len(users)):
                own = {name: tensor[torch.from_numpy(part)] for name, tensor in training.private.items()}
                collected.take(users[part], given, own)
        return collected.trained()

    @override
    def solve(self, model: GlobalModel, cohort: Cohort, private: Tensors, seed: int) -> Tensors:
        after = {name: tensor.clone() for name, tensor in private.items()}
        steps = moving(self.recipe.solve_steps(), model.model.backbone)
        for users, training in self._run(steps, model, cohort, whole(cohort), private, seed) if steps else ():
            for name, tensor in training.private.items():
                after[name][users] = tensor[: len(users)].to(after[name].device)
        return after

    def _run(
        self,
        steps: Sequence[LocalStep],
        model: GlobalModel,
        cohort: Cohort,
        read: Reading,
        private: Tensors,
        seed: int,
    ) -> Iterator[tuple[NDArray[np.int64], LocalTraining]]:
        """The steps of all who have a negative to learn from, chunk by chunk: the users and what became of them.

        Where sums are exact, a user alone is trained twice, beside itself: the first of the two counts.
        """
        for users in self._chunks(read, model.model):
            unknown = self._unknown(cohort, users)
            if self.recipe.negatives and not unknown.counts.all():
                users = users[unknown.counts > 0]
                if not len(users):
                    continue
                unknown = self._unknown(cohort, users)
            trained = users
            if self.stages.alike and len(users) == 1:  # a batch of one takes other ways through the matrix products
                trained = users.repeat(2)
                unknown = self._unknown(cohort, trained)
            own = {name: tensor[torch.from_numpy(trained)] for name, tensor in private.items()}
            chunk = read.select(trained)
            kind = OwnLossTraining if model.model.backbone.own_loss else LocalTraining
            training = kind(self.recipe, unknown, model, chunk, own, seed, alike=self.stages.alike)
            training.run(steps)
            yield users, training

    def _unknown(self, cohort: Cohort, users: NDArray[np.int64]) -> UnknownItems:
        """What these users do not know, of their whole histories."""
        known = cohort.select(users)
        return self.sampler.unknown(known.offsets, known.items)

    def _chunks(self, read: Reading, model: Model) -> Iterator[NDArray[np.int64]]:
        """All users in chunks of about `pairs_at_once` pairs, in which what is held for a history is counted too."""
        if model.backbone.causal:
            yield from self._causal_chunks(read.runs, model)
            return
        held = model.backbone.numbers_per_history(read.width or 0) // (_PER_PAIR * model.embedding.dim)
        contexts = self.recipe.contexts
        passes = 1 if contexts is None else contexts.passes(model.backbone.own_loss)
        start, begins = 0, read.offsets + held * passes * read.contexts * np.arange(len(read) + 1)
        ends = begins[1:]
        while start < len(read):
            end = int(np.searchsorted(ends, begins[start] + self.pairs_at_once, side="right"))
            end = max(start + 1, end)
            yield np.arange(start, end)
            start = end

    def _causal_chunks(self, cohort: Cohort, model: Model) -> Iterator[NDArray[np.int64]]:
        """The same where all histories of a chunk are as wide as its longest, and states cost memory of their own.

        Users of like length go together. What states hold is counted in pairs, of `_PER_PAIR` vectors each. Where sums
        are exact, all of a chunk have one width that depends on nobody else.
        """
        by_length = np.argsort(cohort.lengths, kind="stable")
        start = 0
        while start < len(by_length):
            end = start + 1
            width = self._width(cohort, by_length[start])
            while end < len(by_length):
                if self.stages.alike and self._width(cohort, by_length[end]) != width:
                    break
                longest = int(cohort.lengths[by_length[end]])
                held = longest + model.backbone.numbers_per_history(longest) / (_PER_PAIR * model.embedding.dim)
                if (end + 1 - start) * held > self.pairs_at_once:
                    break
                end += 1
            yield by_length[start:end]
            start = end

    @staticmethod
    def _width(cohort: Cohort, user: np.int64) -> int | None:
        return segment_length(cohort.lengths[user : user + 1], causal=True, alike=True)
