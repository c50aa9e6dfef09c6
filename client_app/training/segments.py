"""Ragged histories as one rectangle: the pairs of every history are cut into segments of equal length.

A history is all that a user reads; where it reads several runs of items, each of them is a history of its own.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client_app.homes.users import Cohort
from fedrec.optim.losses import recency

_LENGTHS = 2 ** np.arange(13)
_SEGMENT = 64
"""What a segment costs beside its tensors, in numbers moved."""
_LENGTH_ALIKE = 32
"""Pairs in a segment where that must not depend on who else trains."""


@dataclass(frozen=True)
class Segments:
    """The pairs of a cohort's users, as [segments, length] with some padding.

    Attributes:
        owner: int64 [segments], the user of each segment.
        history: int64 [segments], the history of which it is a part; the same where a user has one.
        mask: [segments, length], 1.0 for a pair and 0.0 for padding.
        share: [segments], the part of its history's pairs that a segment holds.
        pairs: int64 [segments, length], the place of each pair in its history; padding repeats a place.
        places: int64 [pairs], where each pair of the cohort stands in the flattened rectangle.
        owners: int64 [pairs], the user of each pair.
    """

    owner: Tensor
    history: Tensor
    mask: Tensor
    share: Tensor
    pairs: Tensor
    places: Tensor
    owners: Tensor
    _source: Tensor

    @staticmethod
    def of(
        cohort: Cohort,
        per_segment: int,
        per_pair: int,
        dtype: torch.dtype,
        device: torch.device,
        length: int | None = None,
    ) -> Segments:
        """Cut the histories of users who each have at least one item.

        Args:
            cohort: The users.
            per_segment: Numbers of the user's own tensors, which each of its segments reads.
            per_pair: Numbers that a pair, or padding in its place, costs.
            dtype: Of mask and share.
            device: Of all tensors.
            length: Pairs in a segment; None: whatever is cheapest for these users.
        """
        lengths = cohort.lengths
        length = length or _cheapest_length(lengths, per_segment + _SEGMENT, per_pair)
        counts = -(-lengths // length)
        first = np.cumsum(counts) - counts
        within = np.arange(len(cohort.items)) - np.repeat(cohort.offsets[:-1], lengths)
        places = np.repeat(first * length, lengths) + within
        owner = np.repeat(np.arange(len(cohort)), counts)
        pairs = np.zeros((len(owner), length), dtype=np.int64)
        pairs.reshape(-1)[places] = within
        mask = np.zeros(pairs.shape)
        mask.reshape(-1)[places] = 1.0
        share = mask.sum(1) / lengths[owner]
        source = pairs + cohort.offsets[:-1][owner][:, None]

        def tensor(array: NDArray[np.generic]) -> Tensor:
            return torch.from_numpy(array).to(device)

        number = tensor(owner)
        return Segments(
            number,
            number,
            tensor(mask).to(dtype),
            tensor(share).to(dtype),
            tensor(pairs),
            tensor(places),
            tensor(np.repeat(np.arange(len(cohort)), lengths)),
            tensor(source.reshape(-1)),
        )

    @staticmethod
    def one_each(users: int, dtype: torch.dtype, device: torch.device) -> Segments:
        """What belongs to a user as a whole: a segment for each, of length one."""
        number = torch.arange(users, device=device)
        one = torch.ones(users, 1, dtype=dtype, device=device)
        first = torch.zeros(users, 1, dtype=torch.int64)
        return Segments(number, number, one, one[:, 0], first, number, number, number)

    def shared_out(self, each: int) -> Segments:
        """The same of users of whom every one has `each` of the histories, one after the other."""
        return dataclasses.replace(self, owner=self.owner // each, owners=self.owners // each)

    def beginnings(self, lengths: Tensor) -> Segments:
        """The first pairs of each history alone, `lengths` [histories] of them; every history is one segment."""
        mask = self.mask * (self.pairs < lengths.unsqueeze(1))
        return dataclasses.replace(self, mask=mask)

    def endings(self, lengths: Tensor) -> Segments:
        """The pairs of each history after its first `lengths` [histories]; every history is one segment."""
        mask = self.mask * (self.pairs >= lengths.unsqueeze(1))
        return dataclasses.replace(self, mask=mask)

    def weights(self, half_life: float | None) -> tuple[Tensor, Tensor]:
        """`mask` and `share` if an interaction counts half as much with every `half_life` later ones of its history."""
        if half_life is None:
            return self.mask, self.share
        mask = self.mask * recency((self._last[:, None] - self.pairs).to(self.mask.dtype), half_life)
        return mask, mask.sum(1) / self._totals(mask)

    @property
    def _last(self) -> Tensor:
        """int64 [segments], the place of the last pair of each segment's history that counts."""
        last = torch.where(self.mask > 0, self.pairs, 0).amax(1)
        of_history = last.new_zeros(int(self.history[-1]) + 1).scatter_reduce(0, self.history, last, "amax")
        return of_history[self.history]

    def _totals(self, mask: Tensor) -> Tensor:
        """[segments], the sum over all segments of the same history."""
        held = mask.sum(1)
        return held.new_zeros(int(self.history[-1]) + 1).index_add(0, self.history, held)[self.history]

    def select(self, tensor: Tensor) -> Tensor:
        """Of a tensor [users, ...] for each segment that of its user: [segments, ...]."""
        return tensor if len(self.owner) == len(tensor) else tensor.index_select(0, self.owner)

    def of_history(self, tensor: Tensor) -> Tensor:
        """Of a tensor [histories, ...] for each segment that of its history: [segments, ...]."""
        return tensor if len(self.history) == len(tensor) else tensor.index_select(0, self.history)

    def fill(self, values: Tensor) -> Tensor:
        """Values [pairs, ...] as [segments, length, ...]. Padding repeats the history's first."""
        return values.index_select(0, self._source).reshape(*self.mask.shape, *values.shape[1:])


def _cheapest_length(lengths: NDArray[np.int64], per_segment: int, per_pair: int) -> int:
    """Short segments repeat the user's tensors, long ones waste padding."""
    useful = _LENGTHS[: 1 + int(np.searchsorted(_LENGTHS, lengths.max()))]
    costs = [int((-(-lengths // length)).sum()) * (per_segment + int(length) * per_pair) for length in useful]
    return int(useful[int(np.argmin(costs))])


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
