"""k-means of each user's rows around a centre that stays at zero, for many users at once.

A user's clusters are a function of its own rows, of how many it may have and of its seed, whoever is beside it. One of
them is "not moving": a row that is nearer to zero than to any other centre is not sent. The other centres are means of
their rows, so that what is sent of them adds up to what they were.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedrec.core.rng import counter_uniform
from fedrec.uplinks.padded import Padded

_OF_NUMBERS, _OF_ROWS = 12, 4
"""Passes. Those over numbers cost next to nothing; of rows, more did not bring more accuracy."""


class Clusters(NamedTuple):
    """Which cluster each row is in.

    Attributes:
        centres: [U, K - 1, width], of those that move; zeros where there is none.
        taken: int64 [U, M], 0 for not moving, else the place of the centre and 1 more.
    """

    centres: Tensor
    taken: Tensor


class Ordered(NamedTuple):
    """Some numbers of each user, in ascending order.

    Attributes:
        counts: int64 [U, 1], how many a user has.
        values: float64 [U, M], infinity beyond these.
        order: int64 [U, M], where each was before.
        sums: float64 [U, M + 1], of the first so many.
        squares: float64 [U, M], the sum of the squares up to each.
    """

    counts: Tensor
    values: Tensor
    order: Tensor
    sums: Tensor
    squares: Tensor

    @staticmethod
    def of(numbers: Tensor, there: Tensor) -> Ordered:
        """Of numbers [U, M], those that are `there` (bool [U, M])."""
        values, order = torch.where(there, numbers, torch.inf).sort(1)
        values = values.double()
        finite = torch.where(values.isinf(), 0.0, values)
        sums = torch.nn.functional.pad(finite.cumsum(1), (1, 0))
        return Ordered(there.sum(1, keepdim=True), values, order, sums, finite.square().cumsum(1))

    def quantiles(self, most: Tensor) -> Tensor:
        """float64 [U, n], of each user the numbers at `most` - 1 quantiles of its squares; infinity beyond them."""
        own, number = (most - 1)[:, None], torch.arange(int(most.max()) - 1, device=most.device)
        at = torch.searchsorted(self.squares, self.squares[:, -1:] * (number + 0.5) / own)
        found = self.values.gather(1, at.clamp(max=self.values.shape[1] - 1))
        return torch.where((number < own) & (self.counts > 0), found, torch.inf)


def around_zero(centres: Tensor, cluster: Tensor, zero: Tensor) -> Clusters:
    """Clusters in ascending order [U, K], of which that at `zero` (int64 [U, 1]) is not moving, and who is in which."""
    moving = torch.arange(centres.shape[1] - 1, device=centres.device)
    kept = centres.gather(1, moving + (moving >= zero).long())
    taken = torch.where(cluster == zero, 0, cluster + (cluster < zero).long())
    return Clusters(torch.where(kept.isinf(), 0.0, kept)[..., None], taken)


def of_numbers(numbers: Tensor, there: Tensor, most: Tensor) -> Clusters:
    """Clusters of one number a row.

    They begin at quantiles of the squares, so that large numbers have centres of their own.

    Args:
        numbers: [U, M].
        there: bool [U, M], which of these count.
        most: int64 [U], clusters that a user may have, at least 2, with that of not moving.
    """
    given = Ordered.of(numbers, there)
    counts = given.counts
    centres = torch.nn.functional.pad(given.quantiles(most), (1, 0)).sort(1).values
    zero = (centres < 0).sum(1, keepdim=True)
    edges = counts
    for _ in range(_OF_NUMBERS):
        middles = (centres[:, 1:] + centres[:, :-1]) / 2
        edges = torch.minimum(torch.searchsorted(given.values, middles), counts)
        ends = torch.cat([torch.zeros_like(counts), edges, counts], 1)
        size = ends.diff(dim=1)
        means = given.sums.gather(1, ends).diff(dim=1) / size.clamp(min=1)
        centres = torch.where(size > 0, means, centres).scatter(1, zero, 0.0)
    place = torch.arange(numbers.shape[1], device=numbers.device).expand(numbers.shape).contiguous()
    found = around_zero(centres, torch.searchsorted(edges, place, right=True), zero)
    taken = torch.where(place < counts, found.taken, 0)
    return Clusters(found.centres, torch.zeros_like(taken).scatter(1, given.order, taken))


def of_rows(given: Padded, most: Tensor, seeds: NDArray[np.uint64]) -> Clusters:
    """Clusters of rows (Lloyd, 1982).

    They begin at rows that are drawn without replacement, with a chance that grows with the square of the length: what
    k-means++ (Arthur and Vassilvitskii, SODA 2007) does for the first centre beside that at zero.

    Args:
        given: The rows.
        most: int64 [U], clusters that a user may have, at least 2, with that of not moving.
        seeds: uint64 [U].
    """
    values, there = given.values, given.there
    users, places, width = values.shape
    free = min(int(most.max()) - 1, places)
    squares = torch.linalg.vecdot(values, values)
    uniform = torch.from_numpy(counter_uniform(seeds[:, None], given.rows.cpu().numpy())).to(values.device)
    score = squares.double().log() - (-uniform.clamp(min=1e-300).log()).log()  # Gumbel: the k largest are such a draw
    score = torch.where(there, score, -torch.inf)
    first = score.topk(free, dim=1).indices
    here = torch.arange(free, device=values.device) < torch.minimum(most - 1, given.counts)[:, None]
    centres = values.take_along_dim(first[..., None], 1)
    taken = torch.zeros(users, places, dtype=torch.int64, device=values.device)
    base = torch.arange(users, device=values.device)[:, None] * free
    size = torch.zeros(users, free, 1, dtype=torch.int64, device=values.device)
    flat = values.reshape(-1, width)
    for _ in range(_OF_ROWS):
        closeness = 2 * torch.bmm(values, centres.transpose(1, 2)) - torch.linalg.vecdot(centres, centres)[:, None]
        nearest, place = closeness.masked_fill_(~here[:, None], -torch.inf).max(2)
        moves = (nearest > 0) & there
        taken = torch.where(moves, place + 1, 0)
        into = torch.where(moves, base + place, users * free).flatten()
        sums = values.new_zeros(users * free + 1, width).index_add_(0, into, flat)[:-1].view(users, free, width)
        size = torch.bincount(into, minlength=users * free + 1)[:-1].view(users, free, 1)
        centres = torch.where(size > 0, sums / size.clamp(min=1), centres)
    return Clusters(torch.where(size > 0, centres, 0.0), taken)
