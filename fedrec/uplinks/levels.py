"""One number a row as one of few levels, drawn so that its mean stays what it was.

Levels lie between the smallest and the largest number, with zero among them. A number becomes the level below it or
above it, with the chance that keeps its mean, as in QSGD (Alistarh et al., NeurIPS 2017): many small numbers, of which
the nearest level is zero, then still count together for what they are.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedrec.core.rng import counter_uniform
from fedrec.uplinks.clusters import Clusters, Ordered, around_zero

_PASSES = 12


def of_levels(numbers: Tensor, there: Tensor, rows: Tensor, most: Tensor, seeds: NDArray[np.uint64]) -> Clusters:
    """Levels of one number a row, where the variance of the draws is least, and the draws.

    Args:
        numbers: [U, M].
        there: bool [U, M], which of these count.
        rows: int64 [U, M], which row of the table each belongs to.
        most: int64 [U], levels that a user may have, at least 3, with zero.
        seeds: uint64 [U].
    """
    given, own, places = Ordered.of(numbers, there), (most - 1)[:, None], numbers.shape[1]
    ordered, counts, sums = given.values, given.counts, given.sums
    levels = given.quantiles(most)
    least, largest = ordered[:, :1], ordered.gather(1, (counts - 1).clamp(min=0))
    levels[:, :1] = torch.where(least < 0, least, levels[:, :1])
    last = levels.gather(1, own - 1)
    levels = levels.scatter(1, own - 1, torch.where((largest > 0) & (counts > 0), largest, last))
    levels = torch.nn.functional.pad(levels, (1, 0)).sort(1).values
    zero = (levels < 0).sum(1, keepdim=True)
    for _ in range(_PASSES):
        below, above = levels[:, :-2], levels[:, 2:]
        start, end = torch.searchsorted(ordered, below.contiguous()), torch.searchsorted(ordered, above.contiguous())
        end = torch.minimum(end, counts)
        start = torch.minimum(start, end)
        rest = above * (end - start) - (sums.gather(1, end) - sums.gather(1, start))
        split = (start + rest / (above - below)).nan_to_num(0.0, 0.0, 0.0).long().clamp(min=0, max=places - 1)
        split = torch.minimum(torch.maximum(split, start), (end - 1).clamp(min=0))
        middle = ordered.gather(1, split)
        stays = above.isinf() | (end <= start) | (above <= below)
        moved = torch.cat([levels[:, :1], torch.where(stays, levels[:, 1:-1], middle), levels[:, -1:]], 1)
        levels = moved.scatter(1, zero, 0.0).sort(1).values
    values = numbers.double()
    lower = (torch.searchsorted(levels, values.contiguous(), right=True) - 1).clamp(min=0)
    upper = (lower + 1).clamp(max=levels.shape[1] - 1)
    upper = torch.where(levels.gather(1, upper).isinf(), lower, upper)
    gap = levels.gather(1, upper) - levels.gather(1, lower)
    chance = torch.where(gap > 0, (values - levels.gather(1, lower)) / gap, 0.0)
    uniform = torch.from_numpy(counter_uniform(seeds[:, None], rows.cpu().numpy())).to(values.device)
    found = around_zero(levels, torch.where(uniform < chance, upper, lower), zero)
    return Clusters(found.centres, torch.where(there, found.taken, 0))
