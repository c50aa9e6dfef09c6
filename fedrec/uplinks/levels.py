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
from fedrec.uplinks.clusters import Clusters

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
    places = numbers.shape[1]
    free = int(most.max()) - 1
    counts = there.sum(1, keepdim=True)
    ordered = torch.where(there, numbers, torch.inf).double().sort(1).values
    finite = torch.where(ordered.isinf(), 0.0, ordered)
    sums = torch.nn.functional.pad(finite.cumsum(1), (1, 0))
    squares = finite.square().cumsum(1)
    own, number = (most - 1)[:, None], torch.arange(free, device=numbers.device)
    at = torch.searchsorted(squares, squares[:, -1:] * (number + 0.5) / own).clamp(max=places - 1)
    levels = torch.where((number < own) & (counts > 0), ordered.gather(1, at), torch.inf)
    least, largest = ordered[:, :1], finite.gather(1, (counts - 1).clamp(min=0))
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
    upper = (lower + 1).clamp(max=free)
    upper = torch.where(levels.gather(1, upper).isinf(), lower, upper)
    gap = levels.gather(1, upper) - levels.gather(1, lower)
    chance = torch.where(gap > 0, (values - levels.gather(1, lower)) / gap, 0.0)
    uniform = torch.from_numpy(counter_uniform(seeds[:, None], rows.cpu().numpy())).to(values.device)
    level = torch.where(uniform < chance, upper, lower)
    taken = torch.where(level == zero, 0, level + (level < zero).long())
    moving = torch.arange(free, device=numbers.device)
    kept = levels.gather(1, moving + (moving >= zero).long())
    return Clusters(torch.where(kept.isinf(), 0.0, kept)[..., None], torch.where(there, taken, 0))
