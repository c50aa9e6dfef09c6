"""The contract of a training engine: chosen users' histories and private tensors in, one node update out."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client_app.homes.users import Cohort
from client_app.training.timing import Timer
from fedrec.backbones.base import Backbone
from fedrec.core.tensors import Tensors
from fedrec.data.negatives import NegativeSampler
from fedrec.optim.base import LocalStep, Recipe
from fedrec.stages.chain import Stages
from fedrec.stages.contributions import Contributions, Rows
from fedrec.stages.draws import Draws
from fedrec.wire.updates import NodeUpdate
from peft_embeddings.model import Model


@dataclass(frozen=True)
class GlobalModel:
    """The model as the server sent it: what is trained, and what is frozen (the base table under a correction).

    The device of its tensors is where users train.
    """

    model: Model
    trainable: Tensors
    frozen: Tensors

    def cpu(self) -> GlobalModel:
        """The same in the memory of the processor; tensors that are there already are not copied."""
        there = [{name: tensor.cpu() for name, tensor in part.items()} for part in (self.trainable, self.frozen)]
        return GlobalModel(self.model, *there)

    def item_vectors(self, trainable: Tensors, items: Tensor) -> Tensor:
        """Vectors [..., dim] of item ids [...] with `trainable` in the place of the received tensors."""
        return self.model.item_vectors(trainable, self.frozen, items)


class Trained(NamedTuple):
    """What a node's users came to.

    Attributes:
        update: Their sum.
        private: Their private tensors [users, ...] afterwards.
        taken: bool [users], who is in the sum.
    """

    update: NodeUpdate
    private: Tensors
    taken: NDArray[np.bool_]


def all_finite(private: Tensors, users: int) -> Tensor:
    """Bool [users]: whose private tensors [users, ...], if there are any, are finite in every number."""
    sane = torch.ones(users, dtype=torch.bool)
    for tensor in private.values():
        sane = sane.to(tensor.device) & tensor.isfinite().flatten(1).all(1)
    return sane


def moving(steps: Sequence[LocalStep], backbone: Backbone) -> list[LocalStep]:
    """The steps that move anything: those of private tensors alone are for backbones that have some."""
    return [step for step in steps if step.shared or (step.private and backbone.private)]


_COUNTED_AT_ONCE = 256
"""Users whose parts of a statistic are formed at once."""


class Collected:
    """What the users of a cohort came to so far, while an engine trains them part by part."""

    def __init__(
        self,
        stages: Stages,
        model: GlobalModel,
        private: Tensors,
        keys: NDArray[np.uint64],
        draws: Draws,
        timer: Timer | None = None,
    ) -> None:
        """Nobody yet, of the users with these opaque keys [users] and private tensors [users, ...]."""
        self._stages, self._draws, self._spec, self._timer = stages, draws, model.model.trainable, timer
        self._keys = keys
        self._update = stages.empty(model.trainable, len(keys))
        self._private = {name: tensor.clone() for name, tensor in private.items()}
        self._taken = np.zeros(len(keys), dtype=np.bool_)
        self._idle = np.ones(len(keys), dtype=np.bool_)

    def take(self, users: NDArray[np.int64], given: Contributions, private: Tensors) -> None:
        """Put what `users` give through the stages; the private tensors [len(users), ...] are kept of who is taken."""
        self._idle[users] = False
        sane = all_finite(private, len(users)).to(given.loss.device)
        given = dataclasses.replace(given, loss=torch.where(sane, given.loss, math.nan))
        with torch.no_grad():
            kept = self._stages.add(given, self._update, self._draws, self._timer)
        chosen = users[kept.cpu().numpy()]
        self._taken[chosen] = True
        for name, tensor in private.items():
            self._private[name][chosen] = tensor[kept].to(self._private[name].device)

    def trained(self) -> Trained:
        """The result; users who were never handed over had no negatives, and owe at most their share of noise."""
        update = self._update
        nothing = int(self._idle.sum())
        self._stages.addition.add_idle(self._keys[self._idle], update.total, self._draws)
        update.dropped["no_negatives"] = nothing
        update.packet_bytes += nothing * self._stages.sum_format(self._spec, 1)[1].least(self._spec)
        if not self._stages.tells:
            update.say_no_more()
        update.total = {name: tensor.cpu() for name, tensor in update.total.items()}
        return Trained(update, self._private, self._taken)


def parts_of(model: GlobalModel, cohort: Cohort, length: float) -> Contributions:
    """What each user gives where the model's embedding counts: a part of that length; of who has no items, zeros."""
    counted = model.model.embedding.counted(cohort.offsets, cohort.items)
    norms = np.sqrt(sum(parts.norms(len(cohort)) ** 2 for parts in counted.values()))
    device = next(iter(model.trainable.values())).device
    rows = {}
    for name, (owners, places, values) in counted.items():
        value = torch.from_numpy(values / norms[owners] * length).float().to(device)
        owner, row = torch.from_numpy(owners).to(device), torch.from_numpy(places).to(device)
        rows[model.model.embedding_name(name)] = [Rows(owner, row[:, None], value[:, None, None])]
    spec, users = model.model.trainable, len(cohort)
    whole = {name: entry.zeros(users).to(device) for name, entry in spec.items() if name not in rows}
    return Contributions.of(
        spec, cohort.keys, rows, whole, np.ones(users, dtype=np.int64), torch.zeros(users, device=device)
    )


class Engine(ABC):
    """Trains users locally. What a user's training gives depends on nothing but the model, the user and the seeds."""

    def __init__(
        self,
        recipe: Recipe,
        sampler: NegativeSampler,
        stages: Stages,
        pairs_at_once: int = 65_536,
        fresh: bool = False,
    ) -> None:
        """An engine for one run.

        Args:
            recipe: Local steps and loss.
            sampler: Draws negatives.
            stages: What becomes of each user's update before it is added up.
            pairs_at_once: Bounds the memory of an engine that trains several users at once.
            fresh: Whether noise on devices comes from the operating system, as it does where users are real.
        """
        self.recipe = recipe
        self.sampler = sampler
        self.stages = stages
        self.pairs_at_once = pairs_at_once
        self.fresh = fresh

    def round(
        self, model: GlobalModel, cohort: Cohort, private: Tensors, seed: int, timer: Timer | None = None
    ) -> Trained:
        """One round of a run: of training, as `train`, or one in which users say what the model counts."""
        if model.model.embedding.counts:
            return self._count(model, cohort, private, seed, timer)
        return self.train(model, cohort, private, seed, timer)

    def _count(self, model: GlobalModel, cohort: Cohort, private: Tensors, seed: int, timer: Timer | None) -> Trained:
        """Every user's part of a statistic, as long for all of them: it goes the way of an update.

        Each is one example. Nothing else moves, and so nobody has trained.
        """
        collected = Collected(self.stages, model, private, cohort.keys, Draws(seed, self.fresh), timer)
        for start in range(0, len(cohort), _COUNTED_AT_ONCE):
            users = np.arange(start, min(start + _COUNTED_AT_ONCE, len(cohort)))
            own = {name: tensor[torch.from_numpy(users)] for name, tensor in private.items()}
            part = cohort.part(start, start + len(users))
            collected.take(users, parts_of(model, part, self.stages.counted_length), own)
        return collected.trained()._replace(taken=np.zeros(len(cohort), dtype=np.bool_))

    @abstractmethod
    def train(
        self, model: GlobalModel, cohort: Cohort, private: Tensors, seed: int, timer: Timer | None = None
    ) -> Trained:
        """One round of local training.

        Args:
            model: The global model; its tensors are not changed.
            cohort: The chosen users and their training items.
            private: Their private tensors [users, ...]; not changed.
            seed: Secret seed of the round, for negatives, noise and rounding.
            timer: Times the users, where time is simulated.
        """

    @abstractmethod
    def solve(self, model: GlobalModel, cohort: Cohort, private: Tensors, seed: int) -> Tensors:
        """The private tensors [users, ...] after the recipe's solve steps on the histories; nothing shared moves."""
