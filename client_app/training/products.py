"""Scores that are dot products: of users with the whole table of item vectors at once, looked up where they are read.

A user who reads a thousand items of a catalogue of some thousand would have to gather a thousand vectors, which are
multiplied once in each step. While all users read the same vectors, one matrix product of all of them with the table
costs less, for the table stays in the processor's cache, and so does the gradient by the users, which is such a product
again. The gradient by an item's vector is the user's own vector times one coefficient. So what a user gives is formed
only when its stages need it, for a few users at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client_app.training.contexts import Reading
from client_app.training.engine import GlobalModel
from client_app.training.repeated import repeated
from client_app.training.segments import Segments
from fedrec.backbones.base import Backbone
from fedrec.core.tensors import Tensors
from fedrec.optim.base import LocalStep, Recipe, Sgd
from fedrec.stages.contributions import Rows
from peft_embeddings.model import Model

_NUMBERS_AT_ONCE = 2**19
"""Of the gradients that are formed together: they stay in a cache, and calls do not cost more than arithmetic."""


_PRICE = 4
"""Numbers that are gathered in the time, about, that one score takes with its gradient."""


def products_pay(model: Model, recipe: Recipe, read: Reading, private: Tensors) -> bool:
    """Whether scores are products of which all together cost less than to gather the vectors that a step reads.

    Args:
        model: Embedding and backbone.
        recipe: Says how many negatives there are, and whose.
        read: Who reads how much.
        private: Private tensors of each history.
    """
    backbone = model.backbone
    if backbone.causal or backbone.reads_history or backbone.direction(private) is None:
        return False
    pairs = len(read.runs.items)
    negatives = recipe.negatives * (len(read) if recipe.shared_negatives else pairs)
    return _PRICE * len(read.runs) * model.embedding.n_items <= (pairs + negatives) * model.embedding.dim


def is_one_step(left: Sequence[LocalStep], backbone: Backbone, read: Reading) -> bool:
    """Whether of the steps that are left the first is the last, of plain descent, and moves what vectors are made of.

    Nothing else: then what it changes is an outer product (`OneStep`).
    """
    if len(left) != 1 or not left[0].shared or left[0].private or backbone.shared or read.contexts > 1:
        return False
    return isinstance(left[0].optimiser, Sgd) and not left[0].optimiser.weight_decay


class Products:
    """The scores of some histories' users for every item, and those among them that are read.

    All users read the vectors of the model as it was received.
    """

    def __init__(
        self, model: GlobalModel, items: Sequence[Tensor], layouts: Sequence[Segments], histories: int
    ) -> None:
        """Nothing is multiplied yet.

        Args:
            model: The global model.
            items: The items at each place, int64 [segments, items].
            layouts: How the items at each place are laid out.
            histories: How many there are, each with a vector of its own that items are multiplied with.
        """
        self._n_items = model.model.embedding.n_items
        every = torch.arange(self._n_items, device=items[0].device)
        self._backbone, self._table = model.model.backbone, model.item_vectors(model.trainable, every)
        self._items, self._layouts, self._histories = items, layouts, histories
        self._found: tuple[Sequence[int], list[Tensor]] = ((), [])

    def every(self, private: Tensors) -> Tensor:
        """Scores [histories, n_items] of all items for private tensors [histories, ...]."""
        return _direction(self._backbone, private) @ self._table.T

    def at(self, every: Tensor, places: Sequence[int]) -> list[Tensor]:
        """The scores that are read at places, of those of all items: [segments, items] each.

        Where several histories share the items of a segment, as a user's contexts do, it is [histories, items].
        """
        if self._found[0] != places:
            self._found = places, [self._numbers(place) for place in places]
        numbers = self._found[1]
        flat = numbers[0].flatten() if len(numbers) == 1 else torch.cat([part.flatten() for part in numbers])
        read = every.reshape(-1).index_select(0, flat)
        parts = torch.split(read, [part.numel() for part in numbers])
        return [part.reshape(number.shape) for part, number in zip(parts, numbers, strict=True)]

    def _numbers(self, place: int) -> Tensor:
        """Where the items of a place stand in the flattened scores of all."""
        items, owner = self._items[place], self._layouts[place].history
        if len(items) < self._histories:
            each = self._histories // len(items)
            items, owner = items.repeat_interleave(each, 0), torch.arange(self._histories, device=items.device)
        return owner[:, None] * self._n_items + items


class OneStep:
    """What users give after one step of plain descent of what is shared, from the coefficients of the items they read.

    The embedding carries each item's gradient to the rows and tensors that its vector is made of.
    """

    def __init__(self, model: GlobalModel, private: Tensors, coefficients: Tensor, rate: float) -> None:
        """Of the received model.

        Args:
            model: The global model.
            private: Private tensors [users, ...].
            coefficients: [users, n_items], the gradients of each user's loss by its scores; 0 of what it does not read.
            rate: Of the step.
        """
        self._model, self._rate, users = model, rate, _direction(model.model.backbone, private)
        # Who is not finite is left out in any case, and padding has to be zero.
        self._users = torch.where(users.isfinite(), users, 0.0)
        embedding = model.model.embedding
        read = (coefficients != 0).cpu().numpy()  # whose places numpy finds ten times faster than torch
        flat = torch.from_numpy(np.flatnonzero(read)).to(users.device)
        # The last of each stands for padding.
        self._items = torch.cat([flat % embedding.n_items, flat.new_zeros(1)])
        self._coefficients = torch.cat([coefficients.reshape(-1).index_select(0, flat), coefficients.new_zeros(1)])
        self._counts = torch.from_numpy(np.count_nonzero(read, axis=1)).to(users.device)
        self._starts = self._counts.cumsum(0) - self._counts
        rows = embedding.rows(torch.arange(embedding.n_items, device=users.device), model.frozen)
        self._own_rows = {name: bool(torch.bincount(rows[name].flatten()).max() < 2) for name in embedding.tables}

    def parts(self, users: int) -> Iterator[NDArray[np.int64]]:
        """The first `users` of them, a few at a time, those who read about as many items together."""
        counts = self._counts[:users].cpu().numpy()
        order = np.argsort(counts, kind="stable")
        held = counts[order] * self._users.shape[1]
        start = 0
        while start < users:
            several = held[start:] * np.arange(1, users - start + 1) <= _NUMBERS_AT_ONCE
            end = start + max(1, int(np.count_nonzero(several)))
            yield order[start:end]
            start = end

    def of(self, users: NDArray[np.int64]) -> tuple[dict[str, list[Rows]], Tensors]:
        """Of some of the users: the changes of rows of tables, and of other tensors [users, ...], by name."""
        model, frozen = self._model.model, self._model.frozen
        chosen = torch.from_numpy(users).to(self._users.device)
        items, coefficients = self._read(chosen)
        places = model.embedding.rows(items, frozen)
        rows = {
            name: table.index_select(0, places[name].flatten()).reshape(*places[name].shape, -1)
            for name, table in model.tables(self._model.trainable).items()
        }
        dense = {
            name: tensor.expand(len(users), *tensor.shape).clone()
            for name, tensor in model.dense(self._model.trainable).items()
        }
        inputs = [tensor.requires_grad_() for tensor in (*rows.values(), *dense.values())]
        vectors = model.embed(rows, dense, frozen, model.fixed_rows(frozen, items))
        moved = coefficients.mul_(-self._rate).unsqueeze(-1) * self._users.index_select(0, chosen).unsqueeze(1)
        changes = iter(torch.autograd.grad(vectors, inputs, moved) if inputs else ())
        return {model.embedding_name(name): [self._rows(name, places[name], next(changes))] for name in rows}, {
            model.embedding_name(name): next(changes) for name in dense
        }

    def _read(self, users: Tensor) -> tuple[Tensor, Tensor]:
        """Items [users, n] and coefficients [users, n] of what users read; those of padding are 0."""
        counts = self._counts[users, None]
        column = torch.arange(max(1, int(counts.max())), device=users.device)
        places = torch.where(column < counts, self._starts[users, None] + column, len(self._items) - 1)
        flat = places.flatten()
        items, coefficients = self._items.index_select(0, flat), self._coefficients.index_select(0, flat)
        return items.reshape(places.shape), coefficients.reshape(places.shape)

    def _rows(self, name: str, rows: Tensor, changes: Tensor) -> Rows:
        """The changes [users, n, r, width] of rows [users, n, r] of a table, each of a user's rows in one place."""
        owner = torch.arange(len(rows), device=rows.device)
        if self._own_rows[name]:
            return Rows(owner, rows.flatten(1), changes.flatten(1, 2))
        size = self._model.model.embedding.tables[name].shape[0]
        keys = (owner[:, None, None] * size + rows).flatten()
        found = repeated(keys.cpu().numpy(), len(owner) * size, 1)
        groups, values = (torch.from_numpy(part).to(rows.device) for part in (found.groups, found.values))
        merged = changes.new_zeros(len(values), changes.shape[-1])
        merged.index_add_(0, groups, changes.reshape(-1, changes.shape[-1]))
        return Rows(values // size, (values % size)[:, None], merged[:, None])


def _direction(backbone: Backbone, private: Tensors) -> Tensor:
    found = backbone.direction(private)
    assert found is not None, "only of a backbone whose scores are such products (`products_pay`)"
    return found
