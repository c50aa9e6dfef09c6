"""Noise from a cryptographic generator: SHAKE-256 of a key, turned into normal, Laplace or Skellam numbers.

Uniform numbers have 53 bits (those of Skellam numbers 64), so no draw lies farther out than such a number can tell:
8.6 standard deviations of a normal one. What is noised with floating-point numbers has to be rounded to a grid much
coarser than their last bits, for those tell a floating-point sum apart (Mironov, CCS 2012).
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LARGEST_DEVIATION = 2.0**18
"""Of Skellam numbers: there is a table of their distribution, some 40 MB and seconds of work at this one."""

_SMALLEST_SHARE = 1e-25


def normal(key: bytes, *shape: int) -> Tensor:
    """Standard normal float64 numbers, after Box and Muller."""
    count = int(np.prod(shape, dtype=np.int64))
    pairs = -(-count // 2)
    uniform = _uniform(key, 2 * pairs)
    radius = uniform[:pairs].neg_().log1p_().mul_(-2.0).sqrt_()
    angle = uniform[pairs:].mul_(2.0 * np.pi)
    return torch.cat([radius * angle.cos(), radius * angle.sin()])[:count].reshape(shape)


def laplace(key: bytes, *shape: int) -> Tensor:
    """float64 numbers of the density exp(-|x|) / 2, whose standard deviation is the root of 2."""
    uniform = _uniform(key, int(np.prod(shape, dtype=np.int64))).mul_(2.0)
    sign = torch.where(uniform < 1.0, -1.0, 1.0)
    return (uniform.remainder_(1.0).neg_().log1p_().neg_() * sign).reshape(shape)


def skellam(key: bytes, variance: float, *shape: int) -> Tensor:
    """int64 numbers that are the difference of two Poisson numbers of the same mean; `variance` is twice that mean.

    A sum of independent ones is one of the sum of their variances.

    Raises ValueError for a variance that is not positive or has no table (a standard deviation above 2**18).
    """
    limits, least = _quantiles(variance)
    count = int(np.prod(shape, dtype=np.int64))
    drawn = np.searchsorted(limits, _bits(key, count), side="right") - least
    return torch.from_numpy(drawn.astype(np.int64)).reshape(shape)


@lru_cache(maxsize=4)
def _quantiles(variance: float) -> tuple[NDArray[np.uint64], int]:
    """2**64 times the probabilities of numbers up to -n, -n + 1, ..., n - 1; and n.

    That of k is exp(-v) I_k(v). The ratios I_{k+1} / I_k come from the continued fraction, from far out inwards, where
    it loses nothing (Gautschi, SIAM Review 1967).
    """
    if not 0 < variance <= LARGEST_DEVIATION**2:
        raise ValueError(f"Skellam noise of variance {variance:g}: above 0 and up to {LARGEST_DEVIATION**2:g} is drawn")
    farthest = int(10 * np.sqrt(variance) + 80)
    ratios, ratio = np.empty(farthest), 0.0
    for order in range(farthest, 0, -1):
        ratio = 1.0 / (2.0 * order / variance + ratio)
        ratios[order - 1] = ratio
    tail = np.cumprod(ratios.astype(np.longdouble))
    tail = tail[tail > _SMALLEST_SHARE]
    both = np.concatenate([tail[::-1], np.ones(1, dtype=np.longdouble), tail])
    below = np.cumsum(both)[:-1] / both.sum()
    return np.minimum(below * 2.0**64, np.longdouble(2**64 - 1)).astype(np.uint64), len(tail)


def _bits(key: bytes, count: int) -> NDArray[np.uint64]:
    return np.frombuffer(hashlib.shake_256(key).digest(8 * count), dtype="<u8")


def _uniform(key: bytes, count: int) -> Tensor:
    """float64 [count], from 0 on and below 1."""
    bits = _bits(key, count) >> np.uint64(11)
    return torch.from_numpy(bits.astype(np.float64)).mul_(2.0**-53)
