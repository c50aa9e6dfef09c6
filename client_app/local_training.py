"""The local training of one chunk of users, all at once, each with its own copies of everything that it trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from client_app.copies import Deltas, RowCopies
from client_app.engine import GlobalModel
from client_app.history import SegmentedHistory
from client_app.segments import Segments
from client_app.users import Cohort
from fedrec.backbones.base import ScoreContext, Uniform
from fedrec.negatives import UnknownItems
from fedrec.optim.base import LocalOptimiser, LocalStep, Recipe
from fedrec.optim.local import LocalState
from fedrec.rng import counter_uniform, derive
from fedrec.tensors import Tensors


class LocalTraining:
    """One chunk of users.

    Attributes:
        cohort: The users.
        private: Their private tensors [users, ...].
        loss: [users], each user's loss before its first step.
        whole: Each user's own copies [users, ...] of the dense and shared tensors, by the name under which they travel.
    """

    def __init__(
        self,
        recipe: Recipe,
        unknown: UnknownItems,
        model: GlobalModel,
        cohort: Cohort,
        private: Tensors,
        seed: int,
    ) -> None:
        """A training that has not begun.

        Args:
            recipe: Negatives and loss.
            unknown: What each user does not know: something, for each of them.
            model: The global model; not changed.
            cohort: The users.
            private: Their private tensors [users, ...]; not changed.
            seed: Secret seed of the round.
        """
        self.cohort = cohort
        device = next(iter(model.trainable.values())).device
        self.private = {name: tensor.to(device, copy=True) for name, tensor in private.items()}
        self.whole: Tensors = {}
        self._recipe = recipe
        self._unknown = unknown
        self._model = model
        self._seed = seed
        reference = next(iter(model.trainable.values()))
        self._device, self._dtype = reference.device, reference.dtype
        self.loss = torch.zeros(len(cohort), dtype=self._dtype, device=self._device)
        self._copies: dict[str, RowCopies] = {}
        self._states: dict[tuple[LocalOptimiser, str, str], LocalState] = {}
        self._kept: dict[int, Tensor | None] = {}
        self._table: Tensor | None = None

    def run(self, steps: Sequence[LocalStep]) -> None:
        """Take the steps, all users at once."""
        model = self._model.model
        items = self._draw(len(steps))
        training = any(step.shared for step in steps)
        if training:
            users = len(self.cohort)
            tables = {model.embedding_name(name) for name in model.embedding.tables}
            whole = {name: tensor for name, tensor in self._model.trainable.items() if name not in tables}
            self.whole = {name: _repeated(tensor, users) for name, tensor in whole.items()}
        numel = sum(tensor[0].numel() for tensor in (*self.private.values(), *self.whole.values()))
        per_pair = (1 + self._recipe.negatives) * model.embedding.dim
        self._segments = Segments.of(self.cohort, numel, per_pair, self._dtype, self._device)
        if training:
            self._copy(items)
        self._items = [self._segments.fill(part).flatten(1) for part in items]
        for number, step in enumerate(steps):
            self._step(number, step)

    def _draw(self, steps: int) -> list[Tensor]:
        """The positives [pairs, 1], then the negatives [pairs, q] of each step."""
        cohort = self.cohort
        drawn = [cohort.items[:, None]]
        for step in range(steps):
            drawn.append(
                self._unknown.draw(self._seed, cohort.keys, cohort.lengths, step, self._recipe.negatives).items
            )
        return [torch.from_numpy(part).to(self._device) for part in drawn]

    def _copy(self, items: Sequence[Tensor]) -> None:
        """Give every user its own copies of the rows that it reads."""
        embedding, frozen = self._model.model.embedding, self._model.frozen
        owner = torch.from_numpy(np.repeat(np.arange(len(self.cohort)), self.cohort.lengths)).to(self._device)
        reads = [embedding.rows(part, frozen) for part in items]
        for name, table in self._model.model.tables(self._model.trainable).items():
            self._copies[name] = RowCopies(table, owner, [rows[name] for rows in reads], self._segments)

    def _step(self, number: int, step: LocalStep) -> None:
        places = (0, 1 + number)
        rows = {place: {name: copies.read(place) for name, copies in self._copies.items()} for place in places}
        moving: list[Tensor] = []
        if step.shared:
            moving += [values for of_place in rows.values() for values in of_place.values()]
            moving += self.whole.values()
        if step.private:
            moving += self.private.values()
        for tensor in moving:
            tensor.requires_grad_(True)
        losses = self._losses(number, rows)
        if number == 0:
            self.loss = losses.detach()
        gradients = iter(torch.autograd.grad(losses.sum(), moving))
        with torch.no_grad():
            for tensor in moving:
                tensor.requires_grad_(False)
            if step.shared:
                of_rows = {place: {name: next(gradients) for name in of_place} for place, of_place in rows.items()}
                for name, copies in self._copies.items():
                    copies.step(step.optimiser, {place: of_place[name] for place, of_place in of_rows.items()})
                self._move("shared", self.whole, step.optimiser, gradients)
            if step.private:
                self._move("private", self.private, step.optimiser, gradients)

    def _move(self, group: str, tensors: Tensors, optimiser: LocalOptimiser, gradients: Iterator[Tensor]) -> None:
        for (name, tensor), gradient in zip(tensors.items(), gradients, strict=False):
            key = (optimiser, group, name)
            if key not in self._states:
                self._states[key] = LocalState(optimiser, tensor)
            self._states[key].step(tensor, gradient)

    def _losses(self, number: int, rows: Mapping[int, Tensors]) -> Tensor:
        """Each user's loss [users]."""
        model, segments = self._model.model, self._segments
        whole = self._model.trainable | {name: self._by_segment(tensor) for name, tensor in self.whole.items()}
        dense, shared = model.dense(whole), model.shared(whole)
        vectors = {place: self._vectors(place, of_place, dense) for place, of_place in rows.items()}
        history = SegmentedHistory(self._items[0], vectors[0], segments, len(self.cohort))
        user = model.user(self._model.trainable | self.whole, self._model.frozen, self.private, history)
        user = {name: self._by_segment(tensor) for name, tensor in user.items()}
        scores = []
        for place, read in vectors.items():
            context = ScoreContext(training=True, uniform=self._uniform(number, place, read.dtype))
            scores.append(model.backbone.score(shared, user, read, context))
        positive, negative = scores
        losses = self._recipe.loss(positive, negative.reshape(*positive.shape, -1), segments.mask)
        per_user = torch.zeros(len(self.cohort), dtype=losses.dtype, device=self._device)
        return per_user.index_add(0, segments.owner, losses * segments.share)

    def _by_segment(self, tensor: Tensor) -> Tensor:
        owner = self._segments.owner
        return tensor if len(owner) == len(tensor) else tensor.index_select(0, owner)

    def _vectors(self, place: int, rows: Tensors, dense: Tensors) -> Tensor:
        """Item vectors [segments, items, dim] from the users' own copies; shared ones if no step trains any."""
        if place in self._kept:
            kept = self._kept[place]
        else:
            kept = self._base_rows(place) if rows else self._read_shared(place)
            if place == 0:  # the negatives of a step are not read again
                self._kept[place] = kept
        if not rows:
            assert kept is not None
            return kept
        return self._model.model.embedding.embed(rows, dense, self._model.frozen, kept)

    def _base_rows(self, place: int) -> Tensor | None:
        return self._model.model.base_rows(self._model.frozen, self._items[place])

    def _read_shared(self, place: int) -> Tensor:
        """Vectors of the model as it was received, each worked out once where the items are read often."""
        model, items = self._model, self._items[place]
        if model.model.embedding.n_items > items.numel():
            return model.item_vectors(model.trainable, items)
        if self._table is None:
            every = torch.arange(model.model.embedding.n_items, device=self._device)
            self._table = model.item_vectors(model.trainable, every)
        return self._table.index_select(0, items.flatten()).reshape(*items.shape, -1)

    def _uniform(self, step: int, place: int, dtype: torch.dtype) -> Uniform:
        """Draws for the items of a place, as the contract of `ScoreContext` has them."""
        segments, negatives = self._segments, self._recipe.negatives
        column = np.zeros(1, dtype=np.int64) if place == 0 else 1 + np.arange(negatives)

        def uniform(name: str, width: int) -> Tensor:
            keys = self.cohort.keys[segments.owner.cpu().numpy()][:, None, None]
            pairs = segments.pairs.cpu().numpy()[..., None] * (1 + negatives) + column
            items = pairs.reshape(len(pairs), -1, 1)
            drawn = counter_uniform(derive(self._seed, "score", name), keys, step, items, np.arange(width))
            return torch.from_numpy(drawn).to(self._device, dtype)

        return uniform

    def deltas(self) -> Mapping[str, list[Deltas]]:
        """What the users changed in rows of tables, by the name under which a table travels."""
        return {self._model.model.embedding_name(name): list(rows.deltas()) for name, rows in self._copies.items()}


def _repeated(tensor: Tensor, users: int) -> Tensor:
    return tensor.expand(users, *tensor.shape).clone()
