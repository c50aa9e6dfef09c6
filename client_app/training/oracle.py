"""The one-at-a-time engine: each user trains on copies of the whole model with the framework's own optimisers.

It is slow and plainly right, and so the oracle that any faster engine is tested against.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from client_app.homes.users import Cohort
from client_app.training.engine import Collected, Engine, GlobalModel, Trained
from client_app.training.history import PlainHistory
from fedrec.backbones.base import ScoreContext
from fedrec.core.rng import counter_uniform, derive
from fedrec.core.tensors import Tensors
from fedrec.optim.base import Adam, LocalOptimiser, LocalStep
from fedrec.optim.losses import recency
from fedrec.stages.contributions import Contributions
from fedrec.stages.draws import Draws


class OracleEngine(Engine):
    """One user after the other, on dense copies of every tensor."""

    @override
    def train(self, model: GlobalModel, cohort: Cohort, private: Tensors, seed: int) -> Trained:
        collected = Collected(self.stages, model, private, len(cohort), Draws(seed, self.fresh))
        for user in range(len(cohort)):
            one = cohort.part(user, user + 1)
            own = {name: tensor[user].clone() for name, tensor in private.items()}
            trainable = {name: tensor.clone() for name, tensor in model.trainable.items()}
            loss = self._run(self.recipe.local_steps(), model, one, trainable, own, seed)
            if loss is None:
                continue
            delta = {name: (trainable[name].detach() - model.trainable[name])[None] for name in trainable}
            losses = torch.tensor([loss], dtype=torch.float64, device=next(iter(delta.values())).device)
            given = Contributions.of(model.model.trainable, one.keys, {}, delta, one.lengths, losses)
            collected.take(np.array([user]), given, {name: tensor.detach()[None] for name, tensor in own.items()})
        return collected.trained()

    @override
    def solve(self, model: GlobalModel, cohort: Cohort, private: Tensors, seed: int) -> Tensors:
        after = {name: tensor.clone() for name, tensor in private.items()}
        steps = self.recipe.solve_steps()
        for user in range(len(cohort)):
            own = {name: tensor[user].clone() for name, tensor in private.items()}
            self._run(steps, model, cohort.part(user, user + 1), dict(model.trainable), own, seed)
            for name, tensor in own.items():
                after[name][user] = tensor.detach()
        return after

    def _run(
        self,
        steps: Sequence[LocalStep],
        model: GlobalModel,
        one: Cohort,
        trainable: Tensors,
        own: Tensors,
        seed: int,
    ) -> float | None:
        """Take the steps, changing `trainable` and `own` in place; the loss before the first, None for no negatives."""
        if not steps:
            return 0.0
        of_user = [own[name] for name in model.model.backbone.private]
        groups = {"private": of_user, "shared": list(trainable.values())}
        moving = {part for step in steps for part in groups if getattr(step, part)}
        tensors = [tensor.requires_grad_() for part in sorted(moving) for tensor in groups[part]]
        optimisers: dict[LocalOptimiser, torch.optim.Optimizer] = {}
        first_loss: float | None = None
        for number, step in enumerate(steps):
            loss = self._loss(model, one, trainable, own, seed, number, step.half_life)
            if loss is None:
                return None
            optimiser = optimisers.setdefault(step.optimiser, _torch_optimiser(step.optimiser, tensors))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            for part in moving:
                if not getattr(step, part):
                    for tensor in groups[part]:
                        tensor.grad = None
            optimiser.step()
            first_loss = float(loss.detach()) if first_loss is None else first_loss
        return first_loss

    def _loss(
        self,
        model: GlobalModel,
        one: Cohort,
        trainable: Tensors,
        own: Tensors,
        seed: int,
        step: int,
        half_life: float | None,
    ) -> Tensor | None:
        recipe, n = self.recipe, len(one.items)
        lengths = np.array([1 if recipe.shared_negatives else n])
        time = step if recipe.fresh_negatives else 0
        drawn = self.sampler.unknown(one.offsets, one.items).draw(seed, one.keys, lengths, time, recipe.negatives)
        if drawn.exhausted.any():
            return None
        if recipe.shared_negatives:
            order = np.concatenate([drawn.items[0], one.items])
        else:
            order = np.concatenate([one.items[:, None], drawn.items], axis=1).reshape(-1)
        items = torch.from_numpy(order)
        vectors = model.item_vectors(trainable, items)

        def uniform(name: str, width: int) -> Tensor:
            place = np.arange(len(items))[:, None], np.arange(width)[None, :]
            drawn = counter_uniform(derive(seed, "score", name), one.keys[0], step, *place)
            return torch.from_numpy(drawn).to(vectors.dtype)

        context = ScoreContext(training=True, uniform=uniform)
        positives = torch.from_numpy(one.items)
        history = PlainHistory(positives, model.item_vectors(trainable, positives))
        user = model.model.user(trainable, model.frozen, own, history)
        scores = model.model.backbone.score(model.model.shared(trainable), user, vectors, context)
        later = torch.arange(n - 1, -1, -1, dtype=scores.dtype)
        mask = torch.ones_like(later) if half_life is None else recency(later, half_life)
        if recipe.shared_negatives:
            return recipe.loss(scores[recipe.negatives :], scores[None, : recipe.negatives], mask)
        scores = scores.reshape(n, -1)
        return recipe.loss(scores[:, 0], scores[:, 1:], mask)


def _torch_optimiser(optimiser: LocalOptimiser, tensors: Sequence[Tensor]) -> torch.optim.Optimizer:
    if isinstance(optimiser, Adam):
        betas = (optimiser.beta1, optimiser.beta2)
        return torch.optim.Adam(
            tensors, lr=optimiser.lr, betas=betas, eps=optimiser.eps, weight_decay=optimiser.weight_decay
        )
    return torch.optim.SGD(tensors, lr=optimiser.lr, weight_decay=optimiser.weight_decay)
