"""Histories as a backbone reads them: of a cohort that trains, and of a cohort that is ranked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from client_app.homes.users import Cohort
from client_app.training.segments import Segments
from fedrec.backbones.base import ItemSequence
from fedrec.backbones.history import latest

_ITEMS_AT_ONCE = 65_536


@dataclass(frozen=True)
class SegmentedHistory:
    """The histories of users who train: sums over each segment, then over each history's segments.

    Attributes:
        items: int64 [segments, length], with padding.
        vectors: [segments, length, dim], from the users' own copies of the rows.
        segments: Which of them is whose, and how many of its items belong to it.
        number: How many histories there are: one a user, or one for each of its contexts.
    """

    items: Tensor
    vectors: Tensor
    segments: Segments
    number: int

    @property
    def length(self) -> Tensor:
        """As in `fedrec.backbones.base.History`."""
        return self._by_history(self.segments.mask.sum(1))

    def sum(self, weights: Tensor | None = None) -> Tensor:
        """As in `fedrec.backbones.base.History`."""
        return self._by_history((self._weights(weights).unsqueeze(1) @ self.vectors).squeeze(1))

    def total(self, weights: Tensor) -> Tensor:
        """As in `fedrec.backbones.base.History`."""
        return self._by_history(self._weights(weights).sum(1))

    def sequence(self, length: int | None = None) -> ItemSequence:
        """As in `fedrec.backbones.base.History`."""
        segments = self.segments
        if len(self.vectors) == self.number and length is None:  # each is one segment
            return ItemSequence(self.items, self.vectors, segments.mask > 0)
        counts = torch.bincount(segments.history[segments.places // self.items.shape[1]], minlength=self.number)
        first = counts.cumsum(0) - counts
        pairs, mask = latest(first, first + self.length.long(), length)
        places = segments.places[pairs]
        return ItemSequence(self.items.flatten()[places], self.vectors.flatten(0, 1)[places], mask)

    def _weights(self, weights: Tensor | None) -> Tensor:
        mask = self.segments.mask
        return mask if weights is None else mask * weights[self.items]

    def _by_history(self, values: Tensor) -> Tensor:
        if len(values) == self.number:  # each has one segment, in their order
            return values
        return values.new_zeros(self.number, *values.shape[1:]).index_add(0, self.segments.history, values)


class SharedHistory:
    """The histories of users whose item vectors are the same for all, in float64, a block of items at a time."""

    def __init__(self, cohort: Cohort, vectors: Callable[[Tensor], Tensor], dim: int) -> None:
        """Nothing is read yet; `vectors` gives those [n, dim] of item ids [n]."""
        self._items = torch.from_numpy(cohort.items)
        self._lengths = torch.from_numpy(cohort.lengths)
        self._owner = torch.repeat_interleave(torch.arange(len(cohort)), self._lengths)
        self._vectors = vectors
        self._dim = dim

    @property
    def length(self) -> Tensor:
        """As in `fedrec.backbones.base.History`; may be 0 here."""
        return self._lengths.double()

    def sum(self, weights: Tensor | None = None) -> Tensor:
        """As in `fedrec.backbones.base.History`."""
        total = torch.zeros(len(self._lengths), self._dim, dtype=torch.float64)
        blocks = zip(torch.split(self._items, _ITEMS_AT_ONCE), torch.split(self._owner, _ITEMS_AT_ONCE), strict=True)
        for items, owner in blocks:
            vectors = self._vectors(items)
            total.index_add_(0, owner, vectors if weights is None else vectors * weights[items].unsqueeze(-1))
        return total

    def total(self, weights: Tensor) -> Tensor:
        """As in `fedrec.backbones.base.History`."""
        none = torch.zeros(len(self._lengths), dtype=torch.float64)
        return none.index_add_(0, self._owner, weights[self._items])

    def sequence(self, length: int | None = None) -> ItemSequence:
        """As in `fedrec.backbones.base.History`."""
        ends = self._lengths.cumsum(0)
        places, mask = latest(ends - self._lengths, ends, length)
        items = self._items[places] if len(self._items) else places
        flat = items.reshape(-1)
        parts = [self._vectors(part) for part in torch.split(flat, _ITEMS_AT_ONCE)] if len(flat) else []
        vectors = torch.cat([torch.zeros(0, self._dim, dtype=torch.float64), *parts])
        return ItemSequence(items, vectors.reshape(*items.shape, self._dim), mask)
