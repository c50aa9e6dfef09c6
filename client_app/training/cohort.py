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
from client_app.training.engine import Engine, GlobalModel, Limits, Trained, moving
from client_app.training.fold import fold_at_once, fold_one_by_one
from client_app.training.local_training import LocalTraining
from client_app.training.memory import keep_freed_memory
from client_app.training.windows import windows
from fedrec.codecs.base import Codec
from fedrec.core.tensors import Tensors
from fedrec.data.negatives import NegativeSampler
from fedrec.optim.base import LocalStep, Recipe, Window
from fedrec.privacy.base import PrivacyMechanism, RowAdding
from fedrec.wire.updates import NodeUpdate
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
        privacy: PrivacyMechanism,
        limits: Limits,
        pairs_at_once: int = 65_536,
        codec: Codec | None = None,
    ) -> None:
        super().__init__(recipe, sampler, privacy, limits, pairs_at_once, codec)
        keep_freed_memory()

    @override
    def train(self, model: GlobalModel, cohort: Cohort, private: Tensors, seed: int, rounded: bool = True) -> Trained:
        update = NodeUpdate(total={name: torch.zeros_like(tensor) for name, tensor in model.trainable.items()})
        after = {name: tensor.clone() for name, tensor in private.items()}
        taken = np.zeros(len(cohort), dtype=np.bool_)
        codec = self.codec if rounded else None
        whole = self.privacy.changes_updates and not isinstance(self.privacy, RowAdding)
        fold = fold_one_by_one if whole else fold_at_once
        steps = moving(self.recipe.local_steps(), model.model.backbone)
        for users, training in self._run(steps, model, cohort, private, seed, self.recipe.window):
            with torch.no_grad():
                good = fold(training, model, update, self.limits, self.privacy, codec, seed)
            chosen = users[good.cpu().numpy()]
            taken[chosen] = True
            for name, tensor in training.private.items():
                after[name][chosen] = tensor[good].to(after[name].device)
        update.dropped["no_negatives"] = len(cohort) - update.users - sum(update.dropped.values())
        update.total = {name: tensor.cpu() for name, tensor in update.total.items()}
        return Trained(update, after, taken)

    @override
    def solve(self, model: GlobalModel, cohort: Cohort, private: Tensors, seed: int) -> Tensors:
        after = {name: tensor.clone() for name, tensor in private.items()}
        steps = moving(self.recipe.solve_steps(), model.model.backbone)
        for users, training in self._run(steps, model, cohort, private, seed) if steps else ():
            for name, tensor in training.private.items():
                after[name][users] = tensor.to(after[name].device)
        return after

    def _run(
        self,
        steps: Sequence[LocalStep],
        model: GlobalModel,
        cohort: Cohort,
        private: Tensors,
        seed: int,
        window: Window | None = None,
    ) -> Iterator[tuple[NDArray[np.int64], LocalTraining]]:
        """The steps of all who have a negative to learn from, chunk by chunk: the users and what became of them."""
        read = windows(cohort, window, seed)
        for users in self._chunks(read, model.model):
            whole = cohort.select(users)
            unknown = self.sampler.unknown(whole.offsets, whole.items)
            if not unknown.counts.all():
                users = users[unknown.counts > 0]
                if not len(users):
                    continue
                whole = cohort.select(users)
                unknown = self.sampler.unknown(whole.offsets, whole.items)
            chunk = whole if read is cohort else read.select(users)
            own = {name: tensor[torch.from_numpy(users)] for name, tensor in private.items()}
            training = LocalTraining(self.recipe, unknown, model, chunk, own, seed)
            training.run(steps)
            yield users, training

    def _chunks(self, cohort: Cohort, model: Model) -> Iterator[NDArray[np.int64]]:
        """All users in chunks of about `pairs_at_once` pairs."""
        if model.backbone.causal:
            yield from self._causal_chunks(cohort, model)
            return
        start, ends = 0, cohort.offsets[1:]
        while start < len(cohort):
            end = int(np.searchsorted(ends, cohort.offsets[start] + self.pairs_at_once, side="right"))
            end = max(start + 1, end)
            yield np.arange(start, end)
            start = end

    def _causal_chunks(self, cohort: Cohort, model: Model) -> Iterator[NDArray[np.int64]]:
        """The same where all histories of a chunk are as wide as its longest, and states cost memory of their own.

        Users of like length go together. What states hold is counted in pairs, of `_PER_PAIR` vectors each.
        """
        by_length = np.argsort(cohort.lengths, kind="stable")
        start = 0
        while start < len(by_length):
            end = start + 1
            while end < len(by_length):
                longest = int(cohort.lengths[by_length[end]])
                held = longest + model.backbone.numbers_per_history(longest) / (_PER_PAIR * model.embedding.dim)
                if (end + 1 - start) * held > self.pairs_at_once:
                    break
                end += 1
            yield by_length[start:end]
            start = end
