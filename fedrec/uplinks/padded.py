"""The rows that each of several users has changed, side by side: as many places for each as the one with most needs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fedrec.stages.contributions import Touched


class Padded(NamedTuple):
    """Rows of U users, M places each.

    Attributes:
        owner: int64 [m], the user of each row.
        place: int64 [m], its place there.
        counts: int64 [U], how many rows a user has; the places from there on are empty.
        rows: int64 [U, M], which row of the table; 0 in an empty place.
        values: [U, M, width], what was added to it; zeros in an empty place.
    """

    owner: Tensor
    place: Tensor
    counts: Tensor
    rows: Tensor
    values: Tensor

    @staticmethod
    def of(touched: Touched, users: int) -> Padded:
        """The rows that `users` users have touched."""
        owner = touched.owner
        counts = torch.bincount(owner, minlength=users)
        starts = counts.cumsum(0) - counts
        place = torch.arange(len(owner), device=owner.device) - starts[owner]
        most = max(1, int(counts.max())) if users else 1
        rows = torch.zeros(users, most, dtype=torch.int64, device=owner.device)
        values = touched.changes.new_zeros(users, most, touched.changes.shape[1])
        rows[owner, place] = touched.rows
        values[owner, place] = touched.changes
        return Padded(owner, place, counts, rows, values)

    @property
    def there(self) -> Tensor:
        """Bool [U, M], which places have a row."""
        return torch.arange(self.rows.shape[1], device=self.rows.device) < self.counts[:, None]
