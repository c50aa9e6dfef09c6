"""The rows that each of several users has changed, side by side: as many places for each as the one with most needs."""

from __future__ import annotations

from collections.abc import Iterator
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


class Group(NamedTuple):
    """Users with about as many rows as one another.

    Attributes:
        users: int64 [G], who they are.
        at: int64 [g], where their rows stand among those of all.
        rows: These rows, of users 0 to G - 1.
    """

    users: Tensor
    at: Tensor
    rows: Padded


def by_length(touched: Touched, counts: Tensor, among: Tensor) -> Iterator[Group]:
    """The users `among` (bool [U]) in groups, so that no more than half of the places are empty.

    A few users with long histories would otherwise bring everybody beside them as many places.

    Args:
        touched: The rows of U users.
        counts: int64 [U], how many rows each has.
        among: Whose rows are wanted.
    """
    length = torch.frexp(counts.double()).exponent.masked_fill(~among, 0)
    for bits in sorted(set(length.tolist())):
        if not bits:  # no rows, or not wanted
            continue
        users = torch.nonzero(length == bits).flatten()
        number = torch.full_like(counts, -1)
        number[users] = torch.arange(len(users), device=counts.device)
        of_each = number.index_select(0, touched.owner)
        at = torch.nonzero(of_each >= 0).flatten()
        own = Touched(of_each[at], touched.rows[at], touched.changes.index_select(0, at))
        yield Group(users, at, Padded.of(own, len(users)))
