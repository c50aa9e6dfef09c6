"""The ceiling: the same model trained with everybody's interactions in one place, by Adam over mini-batches of them.

The users' private tensors are one table [users, ...] here, and the item model is trained directly. Loss and negatives
are the recipe's. What stands after the epoch of the best validation is what is tested.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding, embedding_bag
from typing_extensions import override

from client_app.homes.users import Cohort
from client_app.training.engine import GlobalModel
from client_app.training.windows import windows
from commands.baseline.world import World
from fedrec.backbones.base import ItemSequence, ScoreContext, Uniform
from fedrec.backbones.history import latest
from fedrec.core.errors import ConfigError, FedrecError
from fedrec.core.rng import counter_integers, derive, generator
from fedrec.core.tensors import Tensors
from fedrec.evaluation.compared_by import curve_metric


class Trained(NamedTuple):
    """What central training came to.

    Attributes:
        model: After the best epoch.
        private: [users, ...] after it.
        epoch: Its number, from 1.
        epochs: How many there were.
        validation: Metrics after the best epoch; none without validation, when the last epoch counts as the best.
    """

    model: GlobalModel
    private: Tensors
    epoch: int
    epochs: int
    validation: dict[str, float]


def train_centrally(world: World, tell: Callable[[dict[str, Any]], None]) -> Trained:
    """Train until validation gets no better, or all epochs without it; `tell` is told of each, in the form of a round.

    Raises FedrecError if nobody can be trained or ranked, or the model diverges; ConfigError for a backbone that is
    trained on prefixes.
    """
    if world.model.backbone.advice.prefixes:
        raise ConfigError(
            [
                f"backbone={world.config.backbone.name} is judged by what follows a prefix of a history, which central "
                "training does not do: train a federation with federation.fraction=1.0 instead"
            ]
        )
    settings = world.config.central
    training = (CausalTraining if world.model.backbone.causal else CentralTraining)(world)
    best: Trained | None = None
    since, halvings = 0, 0  # the epoch of the best validation or of the last halving, and how many there were
    for epoch in range(1, settings.epochs + 1):
        started = time.monotonic()
        loss = training.epoch(epoch)
        validation = _validated(world, training, epoch) if world.setup.validation else {}
        if best is None or not validation or _value(validation) > _value(best.validation):
            model, private = training.copies()
            best, since = Trained(model, private, epoch, epoch, validation), epoch
        seconds = time.monotonic() - started
        record = {"round": epoch, "rounds": settings.epochs, "phase": "central", "loss": loss}
        tell({**record, **({"validation": validation} if validation else {}), "seconds": seconds})
        if settings.patience and epoch - since >= settings.patience:
            if halvings == settings.halvings:
                break
            training.halve()
            since, halvings = epoch, halvings + 1
    assert best is not None
    return best._replace(epochs=epoch)


def _validated(world: World, training: CentralTraining, epoch: int) -> dict[str, float]:
    slots = world.users.evaluated("validation")
    own = {name: tensor[torch.from_numpy(slots)] for name, tensor in training.private.items()}
    return world.means(world.sums(training.model, own, slots, "validation", epoch), "validation")


def _value(metrics: dict[str, float]) -> float:
    return metrics[curve_metric(metrics)]


class CentralTraining:
    """Central training between two epochs.

    Attributes:
        model: The item model as it stands.
        private: The users' private tensors [users, ...].
    """

    def __init__(self, world: World) -> None:
        """At the start of a run's last phase. Raises FedrecError if no user has an item to be set against its own."""
        settings = world.config.central
        self._world = world
        self._cohort = world.users.training(np.arange(len(world.users)))
        self._unknown = world.sampler.unknown(self._cohort.offsets, self._cohort.items)
        owners = np.repeat(np.arange(len(self._cohort)), self._cohort.lengths)
        self._places = np.flatnonzero(self._unknown.counts[owners] > 0)
        if not len(self._places):
            raise FedrecError("no user has both a training interaction and an item that it does not know")
        self._owners = owners
        self._negatives = world.recipe.negatives if settings.negatives == "recipe" else settings.negatives
        self.model = world.start(self._counts() if world.model.backbone.item_counting else None)
        self.private = world.private(self._cohort)
        moving = [*self.model.trainable.values(), *self.private.values()]
        self._adam = torch.optim.Adam(moving, lr=settings.lr, weight_decay=settings.decay)

    def _counts(self) -> Tensor:
        """Users per item, exactly: here nobody hides anything."""
        counted = np.bincount(self._cohort.items, minlength=self._world.setup.n_items)
        return torch.from_numpy(counted).float()

    def halve(self) -> None:
        """Let later steps be half as large."""
        for group in self._adam.param_groups:
            group["lr"] /= 2

    def copies(self) -> tuple[GlobalModel, Tensors]:
        """Model and private tensors as they stand, which later epochs do not change."""
        trainable = {name: tensor.detach().clone() for name, tensor in self.model.trainable.items()}
        private = {name: tensor.detach().clone() for name, tensor in self.private.items()}
        return GlobalModel(self.model.model, trainable, self.model.frozen), private

    def epoch(self, number: int) -> float:
        """One pass over all training interactions, in a fresh order with fresh negatives; the mean loss."""
        seed = derive(self._world.secret, "central", number)
        moving = [*self.model.trainable.values(), *self.private.values()]
        for tensor in moving:
            tensor.requires_grad_(True)
        total, seen = 0.0, 0
        for batch in self._batches(seed):
            loss = self._loss(batch, seed)
            self._adam.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self._adam.step()
            interactions = self._interactions(batch)
            total, seen = total + float(loss.detach()) * interactions, seen + interactions
        for tensor in moving:
            tensor.requires_grad_(False)
        return total / seen

    def _interactions(self, batch: NDArray[np.int64]) -> int:
        return len(batch)

    def _batches(self, seed: int) -> Iterator[NDArray[np.int64]]:
        order = self._places[torch.randperm(len(self._places), generator=generator(seed, "order")).numpy()]
        size = self._world.config.central.batch
        for start in range(0, len(order), size):
            yield order[start : start + size]

    def _loss(self, places: NDArray[np.int64], seed: int) -> Tensor:
        """The loss of interactions, by their places in the cohort: each is scored among negatives of its own."""
        model, trainable = self.model.model, self.model.trainable
        users = self._owners[places]
        counts, columns = self._unknown.counts[users][:, None], np.arange(self._negatives)[None, :]
        numbers = counter_integers(derive(seed, "negatives"), counts, places[:, None], columns)
        negatives = self._unknown.items(users[:, None], numbers)
        items = torch.from_numpy(np.concatenate([self._cohort.items[places][:, None], negatives], 1))
        vectors = self._vectors(items)
        chosen = torch.from_numpy(users)
        own = {name: tensor.index_select(0, chosen) for name, tensor in self.private.items()}
        if model.backbone.reads_history:
            history = _pooled(self._cohort.select(users), self._every_vector())
            own = model.user(trainable, self.model.frozen, own, history)
        uniform = _uniform(derive(seed, "score", int(places[0])), items.shape)
        scores = model.backbone.score(model.shared(trainable), own, vectors, ScoreContext(True, uniform))
        return self._world.recipe.loss(scores[:, 0], scores[:, 1:], scores.new_ones(len(places)))

    def _vectors(self, items: Tensor) -> Tensor:
        """Vectors [..., dim] of item ids [...], each worked out once where they are more than the catalogue."""
        if items.numel() < self._world.setup.n_items:
            return self.model.item_vectors(self.model.trainable, items)
        return embedding(items, self._every_vector())

    def _every_vector(self) -> Tensor:
        return self.model.item_vectors(self.model.trainable, torch.arange(self._world.setup.n_items))


class CausalTraining(CentralTraining):
    """The same for a backbone with states: a batch is of users, each with the window of its history that it trains on.

    Negatives are drawn for a user, once for all of its items. An epoch is a window of everybody.
    """

    def __init__(self, world: World) -> None:
        """As that of any backbone."""
        super().__init__(world)
        self._able = np.unique(self._owners[self._places])
        self._read = self._cohort

    @override
    def _batches(self, seed: int) -> Iterator[NDArray[np.int64]]:
        """Users with about as many interactions as a batch holds."""
        self._read = windows(self._cohort, self._world.recipe.window, seed)
        order = self._able[torch.randperm(len(self._able), generator=generator(seed, "order")).numpy()]
        ends = np.cumsum(self._read.lengths[order])
        batches = (ends - 1) // self._world.config.central.batch
        yield from np.split(order, np.flatnonzero(np.diff(batches)) + 1)

    @override
    def _interactions(self, batch: NDArray[np.int64]) -> int:
        return int(self._read.lengths[batch].sum())

    @override
    def _loss(self, batch: NDArray[np.int64], seed: int) -> Tensor:
        """The loss of users, by their places in the cohort: a mean over their interactions."""
        model, trainable = self.model.model, self.model.trainable
        counts, columns = self._unknown.counts[batch][:, None], np.arange(self._negatives)[None, :]
        numbers = counter_integers(derive(seed, "negatives"), counts, batch[:, None], columns)
        negatives = self._vectors(torch.from_numpy(self._unknown.items(batch[:, None], numbers)))
        history = _pooled(self._read.select(batch), self._every_vector())
        items, vectors, mask = history.sequence()
        draws = derive(seed, "score", int(batch[0]))
        own = {name: tensor.index_select(0, torch.from_numpy(batch)) for name, tensor in self.private.items()}

        def context(name: str, *shape: int) -> ScoreContext:
            return ScoreContext(True, _uniform(derive(draws, name), torch.Size(shape)))

        states = model.states(trainable, self.model.frozen, own, history, context("states", *items.shape))
        before = {name: tensor[:, :-1] for name, tensor in states.items()}
        shared, score = model.shared(trainable), model.backbone.score
        positive = score(shared, before, vectors.unsqueeze(2), context("positive", *items.shape, 1)).squeeze(2)
        drawn = context("negative", len(batch), 1, self._negatives)
        negative = score(shared, before, negatives.unsqueeze(1), drawn)
        losses = self._world.recipe.loss(positive, negative, mask.to(positive))
        weights = mask.sum(1).to(losses)
        return (losses * weights).sum() / weights.sum()


def _uniform(seed: int, shape: torch.Size) -> Uniform:
    """Draws for the items of a batch, for a backbone that drops out."""
    return lambda name, width: torch.rand((*shape, width), generator=generator(seed, name))


def _pooled(cohort: Cohort, table: Tensor) -> PooledHistory:
    return PooledHistory(torch.from_numpy(cohort.items), torch.from_numpy(cohort.offsets), table)


@dataclass(frozen=True)
class PooledHistory:
    """The histories of a batch's users, one after the other, over one table of item vectors [items, dim].

    Attributes:
        items: int64 [sum of lengths].
        offsets: int64 [users + 1].
        table: Gradients reach it.
    """

    items: Tensor
    offsets: Tensor
    table: Tensor

    @property
    def length(self) -> Tensor:
        """As in `fedrec.backbones.base.History`."""
        return self.offsets.diff().to(self.table.dtype)

    def sum(self, weights: Tensor | None = None) -> Tensor:
        """As in `fedrec.backbones.base.History`."""
        each = None if weights is None else weights[self.items]
        return embedding_bag(
            self.items, self.table, self.offsets, mode="sum", per_sample_weights=each, include_last_offset=True
        )

    def total(self, weights: Tensor) -> Tensor:
        """As in `fedrec.backbones.base.History`."""
        owners = torch.repeat_interleave(torch.arange(len(self.offsets) - 1), self.offsets.diff())
        return weights.new_zeros(len(self.offsets) - 1).index_add(0, owners, weights[self.items])

    def sequence(self, length: int | None = None) -> ItemSequence:
        """As in `fedrec.backbones.base.History`."""
        places, mask = latest(self.offsets[:-1], self.offsets[1:], length)
        items = self.items[places] if len(self.items) else places
        return ItemSequence(items, embedding(items, self.table), mask)
