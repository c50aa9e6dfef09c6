"""Distinct numbers and where each stands, in linear time where the range of the numbers allows it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_RANGE_PER_VALUE = 64
"""Up to this many possible numbers for each given one, a table of all of them is cheaper than sorting the given."""


def distinct(values: NDArray[np.int64], bound: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The distinct values (in no particular order, always the same), and for each value its place among them.

    Args:
        values: int64 [n], each in [0, bound).
        bound: Size of the range.
    """
    if bound > _RANGE_PER_VALUE * len(values):
        found, inverse = np.unique(values, return_inverse=True)
        return found, inverse
    # Of equal values the last one written stands for all.
    number = np.arange(len(values), dtype=np.int32 if len(values) < 2**31 else np.int64)
    written = np.empty(bound, dtype=number.dtype)
    written[values] = number
    stands = written[values]
    first = stands == number
    place = np.cumsum(first) - 1
    return values[first], place[stands]
