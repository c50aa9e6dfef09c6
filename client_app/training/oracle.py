"""The one-at-a-time engine: each user trains on copies of the whole model with the framework's own optimisers.

It is slow and plainly right, and so the oracle that any faster engine is tested against.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from client_app.homes.users import Cohort
from client_app.training.contexts import Reading, reading, whole
from client_app.training.engine import Collected, Engine, GlobalModel, Trained, moving
from client_app.training.timing import Timer
from fedrec.backbones.base import ScoreContext
from fedrec.backbones.history import PlainHistory
from fedrec.core.rng import counter_uniform, derive
from fedrec.core.tensors import Tensors
from fedrec.optim.base import Adam, LocalOptimiser, LocalStep
from fedrec.optim.losses import recency, weighted_mean
from fedrec.stages.contributions import Contributions
from fedrec.stages.draws import Draws


class OracleEngine(Engine):
    """One user after the other, on dense copies of every tensor."""

    @override
    def train(
        self, model: GlobalModel, cohort: Cohort, private: Tensors, seed: int, timer: Timer | None = None
    ) -> Trained:
        collected = Collected(self.stages, model, private, cohort.keys, Draws(seed, self.fresh), timer)
        read = reading(cohort, self.recipe, seed)
        for user in range(len(cohort)):
            one, known = read.select(np.array([user])), cohort.part(user, user + 1).items
            own = [{name: tensor[user].clone() for name, tensor in private.items()} for _ in range(read.contexts)]
            trainable = {name: tensor.clone() for name, tensor in model.trainable.items()}
            loss = self._run(self.recipe.local_steps(), model, one, known, trainable, own, seed)
            if loss is None:
                continue
            delta = {name: (trainable[name].detach() - model.trainable[name])[None] for name in trainable}
            losses = torch.tensor([loss], dtype=torch.float64, device=next(iter(delta.values())).device)
            given = Contributions.of(model.model.trainable, one.keys, {}, delta, one.examples, losses)
            collected.take(np.array([user]), given, {name: tensor.detach()[None] for name, tensor in own[-1].items()})
        return collected.trained()

    @override
    def solve(self, model: GlobalModel, cohort: Cohort, private: Tensors, seed: int) -> Tensors:
        after = {name: tensor.clone() for name, tensor in private.items()}
        steps = self.recipe.solve_steps()
        for user in range(len(cohort)):
            own = {name: tensor[user].clone() for name, tensor in private.items()}
            one = cohort.part(user, user + 1)
            self._run(steps, model, whole(one), one.items, dict(model.trainable), [own], seed)
            for name, tensor in own.items():
                after[name][user] = tensor.detach()
        return after

    def _run(
        self,
        steps: Sequence[LocalStep],
        model: GlobalModel,
        one: Reading,
        known: NDArray[np.int64],
        trainable: Tensors,
        own: Sequence[Tensors],
        seed: int,
    ) -> float | None:
        """Take the steps, changing `trainable` and `own` in place; the loss before the first, None for no negatives.

        `own` has private tensors for each of the user's contexts.
        """
        steps = moving(steps, model.model.backbone)
        if not steps:
            return 0.0
        all_private = [tensor for tensors in own for tensor in tensors.values()]
        groups = {"private": all_private, "shared": list(trainable.values())}
        parts = {part for step in steps for part in groups if getattr(step, part)}
        tensors = [tensor.requires_grad_() for part in sorted(parts) for tensor in groups[part]]
        optimisers: dict[LocalOptimiser, torch.optim.Optimizer] = {}
        first_loss: float | None = None
        for number, step in enumerate(steps):
            negatives = self._negatives(one, known, seed, number)
            if negatives is None:
                return None
            losses = [
                self._loss(model, run, fitted, drawn, trainable, tensors, seed, number, step)
                for run, fitted, drawn, tensors in zip(_runs(one), one.fitted.tolist(), negatives, own, strict=True)
            ]
            loss = torch.stack(losses).sum()
            optimiser = optimisers.setdefault(step.optimiser, _torch_optimiser(step.optimiser, tensors))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            for tensor in groups["shared"]:
                if tensor.grad is not None:
                    tensor.grad /= one.contexts
            for part in parts:
                if not getattr(step, part):
                    for tensor in groups[part]:
                        tensor.grad = None
            optimiser.step()
            first_loss = float(loss.detach()) / one.contexts if first_loss is None else first_loss
        return first_loss

    def _negatives(
        self, one: Reading, known: NDArray[np.int64], seed: int, number: int
    ) -> list[NDArray[np.int64]] | None:
        """The negatives of each of the user's runs, a row for each pair or one for all; None if there are none."""
        shared = self.recipe.shared_negatives
        rows = np.array([1 if shared else len(one.runs.items)])
        time = number if self.recipe.fresh_negatives else 0
        unknown = self.sampler.unknown(np.array([0, len(known)]), known)
        drawn = unknown.draw(seed, one.keys, rows, time, self.recipe.negatives)
        if self.recipe.negatives and drawn.exhausted.any():
            return None
        return [drawn.items] * one.contexts if shared else np.split(drawn.items, one.runs.offsets[1:-1])

    def _loss(
        self,
        model: GlobalModel,
        run: Cohort,
        fitted: int,
        drawn: NDArray[np.int64],
        trainable: Tensors,
        own: Tensors,
        seed: int,
        number: int,
        step: LocalStep,
    ) -> Tensor:
        """The loss of one run of items: of those that are fitted, or of all of it if shared tensors move."""
        recipe, n = self.recipe, len(run.items) if step.shared else fitted
        read = run.items[:n]
        if recipe.shared_negatives:
            order = np.concatenate([drawn[0], read])
        else:
            order = np.concatenate([read[:, None], drawn[:n]], axis=1).reshape(-1)
        items = torch.from_numpy(order)
        vectors = model.item_vectors(trainable, items)

        def context(places: NDArray[np.int64]) -> ScoreContext:
            """Of the items at these places among all that the user scores."""

            def uniform(name: str, width: int) -> Tensor:
                at = places[:, None], np.arange(width)[None, :]
                drawn = counter_uniform(derive(seed, "score", name), run.keys[0], number, *at)
                return torch.from_numpy(drawn).to(vectors.dtype)

            return ScoreContext(training=True, uniform=uniform)

        every, positives = np.arange(len(items)), torch.from_numpy(read)
        later = torch.arange(n - 1, -1, -1, dtype=vectors.dtype)
        mask = torch.ones_like(later) if step.half_life is None else recency(later, step.half_life)
        if recipe.contexts is not None and recipe.contexts.ahead_only:
            mask[:fitted] = 0.0
        own_vectors, shared = model.item_vectors(trainable, positives), model.model.shared(trainable)
        if model.model.backbone.own_loss:
            history = PlainHistory(positives[:fitted], own_vectors[:fitted])
            losses = model.model.losses(trainable, model.frozen, own, history, positives, mask > 0)
            return weighted_mean(losses, mask)
        if model.model.backbone.causal:
            q = recipe.negatives
            # Of each pair the places of its positive and then of its negatives.
            pairs = [np.append(q + p, every[:q]) for p in range(n)] if recipe.shared_negatives else every.reshape(n, -1)
            inputs = np.array([places[0] for places in pairs])
            parts = []
            for p, places in enumerate(pairs):  # nothing is handed in of what came later
                before = PlainHistory(positives[:p], own_vectors[:p])
                states = model.model.states(trainable, model.frozen, own, before, context(inputs[:p]))
                state = {name: tensor[-1] for name, tensor in states.items()}
                parts.append(model.model.backbone.score(shared, state, vectors[places], context(places)))
            scores = torch.stack(parts)
            return recipe.loss(scores[:, 0], scores[:, 1:], mask)
        user = model.model.user(trainable, model.frozen, own, PlainHistory(positives[:fitted], own_vectors[:fitted]))
        scores = model.model.backbone.score(shared, user, vectors, context(every))
        if recipe.shared_negatives:
            return recipe.loss(scores[recipe.negatives :], scores[None, : recipe.negatives], mask)
        scores = scores.reshape(n, -1)
        return recipe.loss(scores[:, 0], scores[:, 1:], mask)


def _runs(one: Reading) -> list[Cohort]:
    return [one.runs.part(number, number + 1) for number in range(one.contexts)]


def _torch_optimiser(optimiser: LocalOptimiser, tensors: Sequence[Tensor]) -> torch.optim.Optimizer:
    if isinstance(optimiser, Adam):
        betas = (optimiser.beta1, optimiser.beta2)
        return torch.optim.Adam(
            tensors, lr=optimiser.lr, betas=betas, eps=optimiser.eps, weight_decay=optimiser.weight_decay
        )
    return torch.optim.SGD(tensors, lr=optimiser.lr, weight_decay=optimiser.weight_decay)
