"""The local training of one chunk of users, all at once, each with its own copies of everything that it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client_app.training.contexts import Reading
from client_app.training.copies import RowCopies, each
from client_app.training.engine import GlobalModel
from client_app.training.history import SegmentedHistory
from client_app.training.products import OneStep, Products, is_one_step, products_pay
from client_app.training.score_draws import uniform_of
from client_app.training.segments import Segments, segment_length
from fedrec.backbones.base import ScoreContext, Uniform
from fedrec.core.tensors import Tensors
from fedrec.data.negatives import UnknownItems
from fedrec.optim.base import LocalOptimiser, LocalStep, Recipe
from fedrec.optim.local import LocalState
from fedrec.stages.contributions import Contributions
from peft_embeddings.model import FixedRows

_NETWORK = 3
"""Numbers moved that one number of a network costs, beside those of the weights that each segment reads."""


class LocalTraining:
    """One chunk of users.

    What is private is held, and steps, for each of a user's contexts; what is shared for each user, whose gradient is
    the mean of its contexts'.

    Attributes:
        loss: [users], each user's loss before its first step.
        whole: Each user's own copies [users, ...] of the dense and shared tensors, by the name under which they travel.
    """

    def __init__(
        self,
        recipe: Recipe,
        unknown: UnknownItems,
        model: GlobalModel,
        read: Reading,
        private: Tensors,
        seed: int,
        alike: bool = False,
    ) -> None:
        """A training that has not begun.

        Args:
            recipe: Negatives and loss.
            unknown: What each user does not know: something, for each of them.
            model: The global model; not changed.
            read: The users, and what they read.
            private: Their private tensors [users, ...]; not changed.
            seed: Secret seed of the round.
            alike: Whether users are laid out alike in any company, so that each trains to the same bits: at some cost
                in speed, for what is cheapest depends on who trains beside it.
        """
        self._read = read
        self._alike = alike
        device = next(iter(model.trainable.values())).device
        self._private = {name: each(tensor, read.contexts).to(device, copy=True) for name, tensor in private.items()}
        self.whole: Tensors = {}
        self._recipe = recipe
        self._unknown = unknown
        self._model = model
        self._seed = seed
        reference = next(iter(model.trainable.values()))
        self._device, self._dtype = reference.device, reference.dtype
        self.loss = torch.zeros(len(read), dtype=self._dtype, device=self._device)
        self._copies: dict[str, RowCopies] = {}
        self._states: dict[tuple[LocalOptimiser, str, str], LocalState] = {}
        self._held: dict[int, FixedRows] = {}
        self._fixed: dict[int, Tensor] = {}
        self._table: Tensor | None = None
        self._weights: dict[tuple[bool, float | None], tuple[Tensor, Tensor]] = {}
        self._products: Products | None = None
        self._one_step: OneStep | None = None

    def run(self, steps: Sequence[LocalStep]) -> None:
        """Take the steps, all users at once."""
        model, recipe, users = self._model.model, self._recipe, len(self._read)
        training = any(step.shared for step in steps)
        if training:
            tables = {model.embedding_name(name) for name in model.embedding.tables}
            whole = {name: tensor for name, tensor in self._model.trainable.items() if name not in tables}
            self.whole = {name: _repeated(tensor, users) for name, tensor in whole.items()}
        runs = self._read.runs
        one_step = is_one_step(steps[-1:], model.backbone, self._read)
        # After a step that moves what is shared, users read copies of their own.
        same_vectors = not any(step.shared for step in steps[: -1 if one_step else 1])
        products = same_vectors and not self._alike and products_pay(model, recipe, self._read, self._private)
        per_segment = sum(tensor[0].numel() for tensor in (*self._private.values(), *self.whole.values()))
        per_segment += recipe.negatives * recipe.shared_negatives
        looked_up = products and (one_step or not training)
        per_score = max(2 if looked_up else model.embedding.dim, _NETWORK * (model.backbone.numbers_per_score - 1))
        per_pair = (1 if recipe.shared_negatives else 1 + recipe.negatives) * per_score
        length = segment_length(runs.lengths, causal=model.backbone.causal, alike=self._alike)
        if self._read.width is not None:  # no run is cut
            length = self._read.width if self._alike else int(runs.lengths.max())
        self._segments = Segments.of(runs, per_segment, per_pair, self._dtype, self._device, length)
        self._fitted = self._judged = self._segments
        if (contexts := recipe.contexts) is not None and training:
            self._segments = self._judged = self._segments.shared_out(self._read.contexts)
            fitted = torch.from_numpy(self._read.fitted).to(self._device)
            self._fitted = self._segments.beginnings(fitted)
            if contexts.ahead_only:
                self._judged = self._segments.endings(fitted)
        of_negatives = self._segments
        if recipe.shared_negatives:
            of_negatives = Segments.one_each(users, self._dtype, self._device)
        positives, *negatives = self._draw(len(steps) if recipe.fresh_negatives else min(1, len(steps)))
        places = [(positives, self._segments), *((drawn, of_negatives) for drawn in negatives)]
        self._layouts = [layout for _, layout in places]
        self._items = [layout.fill(items).flatten(1) for items, layout in places]
        if products:
            self._products = Products(self._model, self._items, self._layouts, len(runs))
        for number, step in enumerate(steps):
            if products and one_step and number + 1 == len(steps):
                self._take_one(number, step)
                return
            if training and not self._copies and (step.shared or not products):
                self._copy(places)
            self._step(number, step)

    def _take_one(self, number: int, step: LocalStep) -> None:
        """That step: of each user the coefficients of the items that it reads, and no copy of anything."""
        assert self._products is not None
        every = self._products.every(self._private).requires_grad_()
        losses = self._scored(step, *self._paired(*self._products.at(every, self._places(number))))
        if number == 0:
            self.loss = losses.detach()
        (coefficients,) = torch.autograd.grad(losses.sum(), [every])
        self._one_step = OneStep(self._model, self._private, coefficients, step.optimiser.lr)

    def _draw(self, times: int) -> list[Tensor]:
        """The positives [pairs, 1], then each time the negatives [pairs, q] ([users, q] if a user's pairs share)."""
        read, recipe = self._read, self._recipe
        rows = np.ones(len(read), dtype=np.int64) if recipe.shared_negatives else np.diff(read.offsets)
        drawn = [read.runs.items[:, None]]
        for time in range(times):
            drawn.append(self._unknown.draw(self._seed, read.keys, rows, time, recipe.negatives).items)
        return [torch.from_numpy(part).to(self._device) for part in drawn]

    def _copy(self, places: Sequence[tuple[Tensor, Segments]]) -> None:
        """Give every user its own copies of the rows that it reads."""
        embedding, frozen = self._model.model.embedding, self._model.frozen
        reads = [(embedding.rows(items, frozen), layout) for items, layout in places]
        for name, table in self._model.model.tables(self._model.trainable).items():
            of_table = [(rows[name], layout) for rows, layout in reads]
            self._copies[name] = RowCopies(table, len(self._read), of_table, alike=self._alike)

    def _step(self, number: int, step: LocalStep) -> None:
        places = self._places(number)
        rows: dict[int, Tensors] = {}
        moving: list[Tensor] = []
        if step.shared:
            rows = {place: {name: copies.read(place) for name, copies in self._copies.items()} for place in places}
            self._fixed.clear()
            self._products = None
            moving += [values for of_place in rows.values() for values in of_place.values()]
            moving += self.whole.values()
        if step.private:
            moving += self._private.values()
        for tensor in moving:
            tensor.requires_grad_(True)
        contexts = self._read.contexts
        losses = self._losses(number, step, places, rows)
        if number == 0:
            self.loss = losses.detach() / contexts
        gradients = iter(torch.autograd.grad(losses.sum(), moving))
        with torch.no_grad():
            for tensor in moving:
                tensor.requires_grad_(False)
            if step.shared:
                shared = (gradient if contexts == 1 else gradient / contexts for gradient in gradients)
                of_rows = {place: {name: next(shared) for name in of_place} for place, of_place in rows.items()}
                for name, copies in self._copies.items():
                    copies.step(step.optimiser, {place: of_place[name] for place, of_place in of_rows.items()})
                self._move("shared", self.whole, step.optimiser, shared)
            if step.private:
                self._move("private", self._private, step.optimiser, gradients)

    def _places(self, number: int) -> tuple[int, int]:
        """Where a step's positives and negatives stand."""
        return 0, 1 + number if self._recipe.fresh_negatives else 1

    def _move(self, group: str, tensors: Tensors, optimiser: LocalOptimiser, gradients: Iterator[Tensor]) -> None:
        for (name, tensor), gradient in zip(tensors.items(), gradients, strict=False):
            key = (optimiser, group, name)
            if key not in self._states:
                self._states[key] = LocalState(optimiser, tensor)
            self._states[key].step(tensor, gradient)

    def _losses(self, number: int, step: LocalStep, places: Sequence[int], rows: Mapping[int, Tensors]) -> Tensor:
        """Each user's loss [users], the sum over its contexts.

        `rows` are the copies at the places, none if the step moves nothing shared.
        """
        if self._products is not None:
            return self._scored(step, *self._paired(*self._products.at(self._products.every(self._private), places)))
        vectors = {p: self._vectors(p, rows[p]) if step.shared else self._fixed_vectors(p) for p in places}
        history = SegmentedHistory(self._items[0], vectors[0], self._fitted, len(self._read.runs))
        scores = self._causal_scores if self._model.model.backbone.causal else self._user_scores
        return self._scored(step, *scores(number, places, vectors, history))

    def _scored(self, step: LocalStep, positive: Tensor, negative: Tensor) -> Tensor:
        return self._losses_of(step, partial(self._recipe.loss, positive, negative))

    def _losses_of(self, step: LocalStep, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """Each user's loss [users], of what gives the segments' [segments] by the weights of their pairs."""
        segments, key = self._judged if step.shared else self._fitted, (step.shared, step.half_life)
        if key not in self._weights:
            self._weights[key] = segments.weights(step.half_life)
        mask, share = self._weights[key]
        losses = loss(mask)
        per_user = torch.zeros(len(self._read), dtype=losses.dtype, device=self._device)
        return per_user.index_add(0, segments.owner, losses * share)

    def _user_scores(
        self, number: int, places: Sequence[int], vectors: Mapping[int, Tensor], history: SegmentedHistory
    ) -> tuple[Tensor, Tensor]:
        """Scores of positives [segments, length] and of negatives [segments, length or 1, q], by what each user is."""
        model = self._model.model
        user = self._private
        if model.backbone.reads_history:
            shared = {name: each(tensor, self._read.contexts) for name, tensor in self.whole.items()}
            user = model.user(self._model.trainable | shared, self._model.frozen, user, history)
        scores = self._scores if self._read.contexts == 1 else self._context_scores
        return self._paired(*(scores(number, place, vectors[place], user) for place in places))

    def _paired(self, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        if self._recipe.shared_negatives:
            return positive, self._segments.of_history(negative).unsqueeze(1)
        return positive, negative.reshape(*positive.shape, -1)

    def _causal_scores(
        self, number: int, places: Sequence[int], vectors: Mapping[int, Tensor], history: SegmentedHistory
    ) -> tuple[Tensor, Tensor]:
        """Scores of positives [users, length] and of negatives [users, length, q], by the state before each positive.

        A user is one segment here.
        """
        model, (first, second) = self._model.model, places
        inputs = ScoreContext(training=True, uniform=self._uniform(number, first, self._dtype))
        every = self._model.trainable | self.whole
        states = model.states(every, self._model.frozen, self._private, history, inputs)
        before = {name: tensor[:, :-1] for name, tensor in states.items()}
        shared = model.shared(self._model.trainable | {name: t.unsqueeze(1) for name, t in self.whole.items()})

        def score(place: int, *items: int) -> Tensor:
            uniform = self._uniform(number, place, self._dtype, (len(self._read), *items))
            context = ScoreContext(training=True, uniform=uniform)
            return model.backbone.score(shared, before, vectors[place].reshape(len(self._read), *items, -1), context)

        length, q = self._segments.mask.shape[1], self._recipe.negatives
        return score(first, length, 1).squeeze(2), score(second, 1 if self._recipe.shared_negatives else length, q)

    def _scores(self, number: int, place: int, vectors: Tensor, user: Tensors) -> Tensor:
        """Scores [segments, length * items] of the items at a place for `user` tensors [histories, ...]."""
        layout = self._layouts[place]
        own = {name: layout.of_history(tensor) for name, tensor in user.items()}
        whole = self._model.trainable | {name: layout.select(tensor) for name, tensor in self.whole.items()}
        context = ScoreContext(training=True, uniform=self._uniform(number, place, vectors.dtype))
        return self._model.model.backbone.score(self._model.model.shared(whole), own, vectors, context)

    def _context_scores(self, number: int, place: int, vectors: Tensor, user: Tensors) -> Tensor:
        """Scores [histories, items] of the items at a place for `user` tensors [histories, ...], contexts of users.

        What belongs to a user is held once for all of them: copies of what is shared, and items that they have in
        common.
        """
        users, contexts = len(self._read), self._read.contexts
        own = {name: tensor.reshape(users, contexts, *tensor.shape[1:]) for name, tensor in user.items()}
        whole = self._model.trainable | {name: tensor.unsqueeze(1) for name, tensor in self.whole.items()}
        items = vectors.reshape(users, -1, *vectors.shape[1:])  # [users, contexts or 1, items, dim]
        uniform = self._uniform(number, place, vectors.dtype, (users, contexts, -1))
        context = ScoreContext(training=True, uniform=uniform)
        return self._model.model.backbone.score(self._model.model.shared(whole), own, items, context).flatten(0, 1)

    def _vectors(self, place: int, rows: Tensors) -> Tensor:
        """Item vectors [segments, items, dim] from the users' own copies."""
        model, layout = self._model.model, self._layouts[place]
        whole = self._model.trainable | {name: layout.select(tensor) for name, tensor in self.whole.items()}
        held = self._held.get(place) or model.fixed_rows(self._model.frozen, self._items[place])
        if self._read_again(place):
            self._held[place] = held
        return model.embed(rows, model.dense(whole), self._model.frozen, held)

    def _fixed_vectors(self, place: int) -> Tensor:
        """The same for a step that moves nothing shared: kept until one does."""
        if place in self._fixed:
            return self._fixed[place]
        if self._copies:
            vectors = self._vectors(place, {name: copies.read(place) for name, copies in self._copies.items()})
        else:
            vectors = self._received_vectors(self._items[place])
        if self._read_again(place):
            self._fixed[place] = vectors
        return vectors

    def _read_again(self, place: int) -> bool:
        return place == 0 or not self._recipe.fresh_negatives

    def _received_vectors(self, items: Tensor) -> Tensor:
        """Vectors of the model as it was received, each worked out once where the items are read often."""
        model = self._model
        if model.model.embedding.n_items > items.numel():
            return model.item_vectors(model.trainable, items)
        if self._table is None:
            every = torch.arange(model.model.embedding.n_items, device=self._device)
            self._table = model.item_vectors(model.trainable, every)
        return self._table.index_select(0, items.flatten()).reshape(*items.shape, -1)

    def _uniform(self, step: int, place: int, dtype: torch.dtype, shape: Sequence[int] | None = None) -> Uniform:
        """Draws for the items of a place; `shape`, if given, is theirs."""
        keys, like = self._read.runs.keys, self.loss.to(dtype)
        return uniform_of(self._layouts[place], self._recipe, keys, self._seed, step, place > 0, like, shape)

    @property
    def private(self) -> Tensors:
        """Each user's private tensors [users, ...]; of its contexts' those of the latest."""
        contexts = self._read.contexts
        return {name: tensor[contexts - 1 :: contexts] for name, tensor in self._private.items()}

    def contributions(self, users: int) -> Iterator[tuple[NDArray[np.int64], Contributions]]:
        """What the first `users` of them changed, and what is told beside it: a few users at a time, by position."""
        model, received, read = self._model.model, self._model.trainable, self._read
        if self._one_step is not None:
            for part in self._one_step.parts(users):
                changed, loss = self._one_step.of(part), self.loss[torch.from_numpy(part).to(self._device)]
                yield part, Contributions.of(model.trainable, read.keys[part], *changed, read.examples[part], loss)
            return
        rows = {model.embedding_name(name): list(copies.deltas()) for name, copies in self._copies.items()}
        whole = {name: tensor - received[name] for name, tensor in self.whole.items()}
        every = Contributions.of(model.trainable, read.keys, rows, whole, read.examples, self.loss)
        for start, end in every.parts(users):
            yield np.arange(start, end), every.part(start, end)


def _repeated(tensor: Tensor, users: int) -> Tensor:
    return tensor.expand(users, *tensor.shape).clone()
