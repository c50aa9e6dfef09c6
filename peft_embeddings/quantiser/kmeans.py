"""k-means: started by k-means++ (Arthur and Vassilvitskii, SODA 2007), improved by Lloyd's iterations (1982).

Written out here because the result has to be a function of the points and the generator alone, on any number of cores,
and because catalogues have duplicates, and fewer different vectors than codes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_ROWS_AT_ONCE = 8_192


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """For points [n, dim] the row of the nearest of centres [k, dim], the first of equally near ones: int64 [n]."""
    lengths = centres.square().sum(1)
    # The point's own length is the same for all centres. numpy looks for the least several times faster than torch.
    parts = [torch.addmm(lengths, part, centres.T, alpha=-2).numpy() for part in torch.split(points, _ROWS_AT_ONCE)]
    return torch.from_numpy(np.concatenate([part.argmin(1) for part in parts]))


def kmeans(points: Tensor, k: int, rng: torch.Generator, iterations: int = 25) -> Tensor:
    """Centres [k, dim] of points [n, dim], n > 0.

    If there are fewer than k different points, each is a centre, and the centres that are left over are zero and come
    last, so that no point needs them.
    """
    centres = _spread(points, k, rng)
    before = None
    for _ in range(iterations):
        owner = nearest(points, centres)
        if before is not None and torch.equal(owner, before):
            break
        before = owner
        counts = torch.bincount(owner, minlength=len(centres))
        sums = torch.zeros_like(centres).index_add_(0, owner, points)
        used = counts > 0
        moved = torch.where(used[:, None], sums / counts.clamp(min=1)[:, None], centres)
        if not used.all():
            # A centre without points takes over one of those that are worst served.
            errors = (points - moved[owner]).square().sum(1)
            moved[~used] = points[errors.topk(int((~used).sum())).indices]
        centres = moved
    return torch.cat([centres, centres.new_zeros(k - len(centres), points.shape[1])])


def _spread(points: Tensor, k: int, rng: torch.Generator) -> Tensor:
    """Up to k points, each drawn with a probability proportional to the squared distance to those drawn before."""
    drawn = [int(torch.randint(len(points), (1,), generator=rng))]
    distances = (points - points[drawn[0]]).square().sum(1)
    while len(drawn) < k and bool(distances.any()):
        drawn.append(int(torch.multinomial(distances, 1, generator=rng)))
        distances = torch.minimum(distances, (points - points[drawn[-1]]).square().sum(1))
    return points[drawn]
