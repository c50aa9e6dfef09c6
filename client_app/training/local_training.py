"""The local training of one chunk of users, all at once, each with its own copies of everything that it trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client_app.training.contexts import Reading
from client_app.training.copies import RowCopies
from client_app.training.engine import GlobalModel
from client_app.training.history import SegmentedHistory
from client_app.training.segments import Segments
from fedrec.backbones.base import ScoreContext, Uniform
from fedrec.core.rng import counter_uniform, derive
from fedrec.core.tensors import Tensors
from fedrec.data.negatives import UnknownItems
from fedrec.optim.base import LocalOptimiser, LocalStep, Recipe
from fedrec.optim.local import LocalState
from fedrec.stages.contributions import Contributions
from peft_embeddings.model import FixedRows

_LENGTH_ALIKE = 32
"""Pairs in a segment where that must not depend on who else trains."""


def segment_length(lengths: NDArray[np.int64], *, causal: bool, alike: bool) -> int | None:
    """Pairs in a segment; None: whatever is cheapest for these users.

    Args:
        lengths: Pairs of each user.
        causal: Whether a history must not be cut, because a state is made of all that came before it.
        alike: Whether the length must not depend on who else trains, as long as all are in one chunk for which this
            function gives each of them the same length.
    """
    if not causal:
        return _LENGTH_ALIKE if alike else None
    longest = int(lengths.max())
    return max(_LENGTH_ALIKE, 1 << (longest - 1).bit_length()) if alike else longest


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
        self._private = {name: _each(tensor, read.contexts).to(device, copy=True) for name, tensor in private.items()}
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

    def run(self, steps: Sequence[LocalStep]) -> None:
        """Take the steps, all users at once."""
        model, recipe, users = self._model.model, self._recipe, len(self._read)
        training = any(step.shared for step in steps)
        if training:
            tables = {model.embedding_name(name) for name in model.embedding.tables}
            whole = {name: tensor for name, tensor in self._model.trainable.items() if name not in tables}
            self.whole = {name: _repeated(tensor, users) for name, tensor in whole.items()}
        per_segment = sum(tensor[0].numel() for tensor in (*self._private.values(), *self.whole.values()))
        per_pair = (1 if recipe.shared_negatives else 1 + recipe.negatives) * model.embedding.dim
        runs = self._read.runs
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
        if training:
            self._copy(places)
        for number, step in enumerate(steps):
            self._step(number, step)

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
        places = (0, 1 + number if self._recipe.fresh_negatives else 1)
        rows: dict[int, Tensors] = {}
        moving: list[Tensor] = []
        if step.shared:
            rows = {place: {name: copies.read(place) for name, copies in self._copies.items()} for place in places}
            self._fixed.clear()
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
        vectors = {place: self._vectors_at(place, rows.get(place)) for place in places}
        history = SegmentedHistory(self._items[0], vectors[0], self._fitted, len(self._read.runs))
        scores = self._causal_scores if self._model.model.backbone.causal else self._user_scores
        positive, negative = scores(number, places, vectors, history)
        segments = self._judged if step.shared else self._fitted
        mask, share = segments.weights(step.half_life)
        losses = self._recipe.loss(positive, negative, mask)
        per_user = torch.zeros(len(self._read), dtype=losses.dtype, device=self._device)
        return per_user.index_add(0, segments.owner, losses * share)

    def _user_scores(
        self, number: int, places: Sequence[int], vectors: Mapping[int, Tensor], history: SegmentedHistory
    ) -> tuple[Tensor, Tensor]:
        """Scores of positives [segments, length] and of negatives [segments, length or 1, q], by what each user is."""
        model = self._model.model
        user = self._private
        if model.backbone.reads_history:
            shared = {name: _each(tensor, self._read.contexts) for name, tensor in self.whole.items()}
            user = model.user(self._model.trainable | shared, self._model.frozen, user, history)
        scores = self._scores if self._read.contexts == 1 else self._context_scores
        positive, negative = (scores(number, place, vectors[place], user) for place in places)
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

    def _vectors_at(self, place: int, rows: Tensors | None) -> Tensor:
        return self._fixed_vectors(place) if rows is None else self._vectors(place, rows)

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
        """Draws for the items of a place, as the contract of `ScoreContext` has them; `shape`, if given, is theirs.

        Each of a user's contexts has its own, also for items that all of them are set against.
        """
        layout, recipe, keys = self._layouts[place], self._recipe, self._read.runs.keys

        def uniform(name: str, width: int) -> Tensor:
            pairs, of_whom = layout.pairs.cpu().numpy(), keys[layout.history.cpu().numpy()]
            if len(pairs) < len(keys):
                pairs, of_whom = pairs[:1], keys
            items = item_places(pairs, recipe, negative=place > 0).reshape(len(pairs), -1, 1)
            at = of_whom[:, None, None], step, items, np.arange(width)
            values = torch.from_numpy(counter_uniform(derive(self._seed, "score", name), *at)).to(self._device, dtype)
            return values if shape is None else values.reshape(*shape, width)

        return uniform

    @property
    def private(self) -> Tensors:
        """Each user's private tensors [users, ...]; of its contexts' those of the latest."""
        contexts = self._read.contexts
        return {name: tensor[contexts - 1 :: contexts] for name, tensor in self._private.items()}

    def contributions(self) -> Contributions:
        """What the users changed, and what is told beside it."""
        model, received = self._model.model, self._model.trainable
        rows = {model.embedding_name(name): list(copies.deltas()) for name, copies in self._copies.items()}
        whole = {name: tensor - received[name] for name, tensor in self.whole.items()}
        return Contributions.of(model.trainable, self._read.keys, rows, whole, self._read.examples, self.loss)


def item_places(pairs: NDArray[np.int64], recipe: Recipe, negative: bool) -> NDArray[np.int64]:
    """The place of items among all that a user scores in a step: [..., pairs] as [..., pairs, 1 or q].

    Each positive comes before its negatives; negatives that a user's positives share come before all of them.
    """
    q = recipe.negatives
    column = np.arange(q) if negative else np.zeros(1, dtype=np.int64)
    if recipe.shared_negatives:
        return pairs[..., None] + column + (0 if negative else q)
    return pairs[..., None] * (1 + q) + column + (1 if negative else 0)


def _each(tensor: Tensor, times: int) -> Tensor:
    """Of a tensor [users, ...] each user's so many times: [users * times, ...]."""
    return tensor if times == 1 else tensor.repeat_interleave(times, 0)


def _repeated(tensor: Tensor, users: int) -> Tensor:
    return tensor.expand(users, *tensor.shape).clone()
