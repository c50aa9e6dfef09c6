"""Ragged histories as one rectangle: every user's pairs are cut into segments of equal length."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client_app.users import Cohort

_LONGEST = 32
"""Long enough that a segment's own costs vanish, short enough that the last one of a user wastes little."""


@dataclass(frozen=True)
class Segments:
    """The pairs of a cohort's users, as [segments, length] with some padding.

    Attributes:
        owner: int64 [segments], the user of each segment.
        mask: [segments, length], 1.0 for a pair and 0.0 for padding.
        share: [segments], the part of its user's pairs that a segment holds.
    """

    owner: Tensor
    mask: Tensor
    share: Tensor
    _place: NDArray[np.int64]
    _within: NDArray[np.int64]
    _first: NDArray[np.int64]

    @staticmethod
    def of(cohort: Cohort, dtype: torch.dtype) -> Segments:
        """Cut the histories of users who each have at least one item."""
        lengths = cohort.lengths
        length = int(np.clip(lengths.mean(), 1, _LONGEST))
        counts = -(-lengths // length)
        first = np.cumsum(counts) - counts
        within = np.arange(len(cohort.items)) - np.repeat(cohort.offsets[:-1], lengths)
        place = np.repeat(first * length, lengths) + within
        owner = np.repeat(np.arange(len(cohort)), counts)
        flat = np.zeros(len(owner) * length)
        flat[place] = 1.0
        mask = flat.reshape(len(owner), length)
        share = mask.sum(1) / lengths[owner]
        return Segments(
            torch.from_numpy(owner),
            torch.from_numpy(mask).to(dtype),
            torch.from_numpy(share).to(dtype),
            place,
            within,
            cohort.offsets[:-1][owner],
        )

    @property
    def pairs(self) -> NDArray[np.int64]:
        """int64 [segments, length], the place of each pair in its user's history (0 where there is padding)."""
        within = np.zeros(self.mask.numel(), dtype=np.int64)
        within[self._place] = self._within
        return within.reshape(self.mask.shape)

    def fill(self, items: NDArray[np.int64]) -> Tensor:
        """Items [pairs, w] as [segments, length, w]. Padding repeats an item of the same user, so it adds no row."""
        segments, length = self.mask.shape
        filled = np.repeat(items[self._first, :1], length * items.shape[1], axis=0).reshape(-1, items.shape[1])
        filled[self._place] = items
        return torch.from_numpy(filled).reshape(segments, length, items.shape[1])
