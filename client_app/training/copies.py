"""Each user's own copies of the rows of one table that it reads while it trains.

Most rows are read once, or once in every step (those of a positive): each such read owns its copy, in the order in
which it is read, so that nothing is looked up and gradients arrive where they are used. Rows that stand in several
places (a negative drawn twice, a bucket that many items share) live in a small table beside it, which is copied to the
places before they are read and collects their gradients afterwards. Where there are more reads than rows,
it holds all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from client_app.training.repeated import repeated
from client_app.training.segments import Segments
from fedrec.optim.base import LocalOptimiser
from fedrec.optim.local import LocalState
from fedrec.stages.contributions import Rows


class _Place:
    """The copies at one place of the pairs (the positives, or the negatives of one step)."""

    def __init__(self, rows: Tensor, owner: Tensor, shared: Tensor, groups: Tensor, owns: bool) -> None:
        self.rows = rows  # int64 [segments, length * items, r]
        self.owner = owner  # int64 [segments]
        self.shared = shared  # int64 [m], flat positions of the copies that the small table stands for
        self.groups = groups  # int64 [m], which of its rows
        self.owns = owns  # whether any copy of a pair is not among them; those of padding are never moved
        self.moved: Tensor | None = None  # what was added to its own copies so far; None before they are first read


class RowCopies:
    """The copies of one table's rows for a chunk of users."""

    def __init__(
        self, table: Tensor, users: int, reads: Sequence[tuple[Tensor, Segments]], *, alike: bool = False
    ) -> None:
        """Copies for a whole training.

        Args:
            table: The received table [rows, width].
            users: Number of users.
            reads: For each place (first that of the positives, then those of negatives) the rows that are read there,
                int64 [pairs, items, r], and how its pairs are laid out.
            alike: Whether it must not depend on the other users which rows go into the small table.
        """
        self._table = table
        self._states: dict[tuple[LocalOptimiser, int], LocalState] = {}
        self._steps: Counter[LocalOptimiser] = Counter()
        keys = torch.cat([(at.owners[:, None, None] * len(table) + rows).flatten() for rows, at in reads])
        # Where there are more reads than rows, the few rows that are read once go into the small table, too.
        least = 1 if len(keys) > users * len(table) and not alike else 2
        found = repeated(keys.cpu().numpy(), users * len(table), least)
        places, groups, values = (torch.from_numpy(part).to(table.device) for part in found)
        self._owner, self._rows = values // len(table), values % len(table)
        self._small = table.index_select(0, self._rows)
        self._places = []
        sizes = [rows.numel() for rows, _ in reads]
        ends = np.cumsum(sizes)
        cuts = [0, *np.searchsorted(found.places, ends).tolist()]
        for number, (rows, at) in enumerate(reads):
            mine = slice(cuts[number], cuts[number + 1])
            per_pair = rows.shape[1] * rows.shape[2]
            place = places[mine] - int(ends[number] - sizes[number])
            shared = at.places[place // per_pair] * per_pair + place % per_pair
            owns = len(place) < rows.numel()
            self._places.append(_Place(at.fill(rows).flatten(1, 2), at.owner, shared, groups[mine], owns))

    def read(self, number: int) -> Tensor:
        """The present copies [segments, length * items, r, width] at place `number`."""
        place = self._places[number]
        small = self._small.index_select(0, place.groups)
        if len(small) == place.rows.numel():  # all of them stand there, in the order of their places
            return small.reshape(*place.rows.shape, -1)
        values = self._table.index_select(0, place.rows.flatten())
        if place.moved is not None:
            values += place.moved.reshape(values.shape)
        values.index_copy_(0, place.shared, small)
        return values.reshape(*place.rows.shape, -1)

    def step(self, optimiser: LocalOptimiser, gradients: Mapping[int, Tensor]) -> None:
        """Move all copies by one step, given the gradients at the places that were read for it.

        A copy that was not read has no gradient, but an optimiser with momentum may move it all the same.
        """
        small = torch.zeros_like(self._small)
        for number, place in enumerate(self._places):
            if number in gradients:
                gradient = gradients[number].contiguous().reshape(-1, small.shape[1])
                small.index_add_(0, place.groups, gradient.index_select(0, place.shared))
                if not place.owns:
                    continue
                gradient.index_fill_(0, place.shared, 0)
                if place.moved is None:
                    place.moved = torch.zeros_like(gradient)
            elif place.moved is not None and (optimiser, number) in self._states:
                gradient = torch.zeros_like(place.moved)
            else:
                continue
            self._state(optimiser, number, place.moved).step(place.moved, gradient)
        if len(small):
            self._state(optimiser, -1, small).step(self._small, small)
        self._steps[optimiser] += 1

    def _state(self, optimiser: LocalOptimiser, number: int, tensor: Tensor) -> LocalState:
        key = (optimiser, number)
        if key not in self._states:
            self._states[key] = LocalState(optimiser, tensor, self._steps[optimiser])
        return self._states[key]

    def deltas(self) -> Iterator[Rows]:
        """What was added to the copies since the start."""
        for place in self._places:
            if place.moved is not None:
                rows = place.rows.flatten(1)
                yield Rows(place.owner, rows, place.moved.reshape(*rows.shape, -1))
        if len(self._small):
            moved = self._small - self._table.index_select(0, self._rows)
            yield Rows(self._owner, self._rows[:, None], moved[:, None])


def each(tensor: Tensor, times: int) -> Tensor:
    """Of a tensor [users, ...] each user's so many times: [users * times, ...]."""
    return tensor if times == 1 else tensor.repeat_interleave(times, 0)
