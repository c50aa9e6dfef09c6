"""Every user alone: a copy of the whole model for each, trained on its own history and never averaged.

A user takes the recipe's rounds as a federation of one, local steps and server step, so that this is defined for every
recipe and embedding. The models are made, ranked and thrown away one user after the other.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from client_app.training.engine import GlobalModel
from commands.baseline.world import World
from fedrec.core.rng import derive
from fedrec.core.tensors import Tensors
from fedrec.data.split import HeldOut
from fedrec.evaluation.metrics import add_sums


def train_alone(world: World, work: Callable[[str, int, int], None]) -> dict[str, dict[str, float]]:
    """The metrics of each split, every user ranked with its own model; `work` is told how far it has come."""
    start = world.start(None)
    splits: tuple[HeldOut, ...] = ("validation", "test") if world.setup.validation else ("test",)
    parts: dict[HeldOut, list[dict[str, float]]] = {split: [] for split in splits}
    held_out = {split: set(world.users.evaluated(split).tolist()) for split in splits}
    slots = sorted(set().union(*held_out.values()))
    for done, slot in enumerate(slots, start=1):
        lone = np.array([slot])
        model, private = user_alone(world, start, lone)
        for split, sums in parts.items():
            if slot in held_out[split]:
                sums.append(world.sums(model, private, lone, split, world.config.local.rounds))
        work("users trained alone", done, len(slots))
    return {split: world.means(add_sums(part for part in sums if part), split) for split, sums in parts.items()}


def user_alone(world: World, start: GlobalModel, slot: NDArray[np.int64]) -> tuple[GlobalModel, Tensors]:
    """The model and the private tensors [1, ...] of the one user in `slot` [1], after its own rounds from `start`."""
    cohort = world.users.training(slot)
    model, private, optimiser = start, world.private(cohort), Tensors()
    for round in range(1, world.config.local.rounds + 1):
        trained = world.engine.train(model, cohort, private, derive(world.secret, "train", round))
        if not trained.update.weight:  # no negatives, or it has diverged: it stays as it is
            break
        delta = {name: total / trained.update.weight for name, total in trained.update.total.items()}
        trainable, optimiser = world.recipe.server_update(model.trainable, delta, optimiser)
        model = GlobalModel(model.model, trainable, model.frozen)
        if not world.recipe.private_anew:
            private = trained.private
    return model, private
