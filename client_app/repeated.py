"""Which numbers stand more than once, in linear time where the range of the numbers allows it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_RANGE_PER_VALUE = 64
"""Up to this many possible numbers for each given one, a table of all of them is cheaper than sorting the given."""


class Repeated(NamedTuple):
    """Numbers that stand more than once.

    Attributes:
        places: int64 [places], where they stand, ascending.
        groups: int64 [places], which of the `values` stands there.
        values: int64 [groups], the numbers, ascending.
    """

    places: NDArray[np.int64]
    groups: NDArray[np.int64]
    values: NDArray[np.int64]


def repeated(values: NDArray[np.int64], bound: int) -> Repeated:
    """The numbers among `values` that stand there more than once.

    Args:
        values: int64 [n], each in [0, bound).
        bound: Size of the range.
    """
    if bound > _RANGE_PER_VALUE * len(values):
        found, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        number = np.cumsum(counts > 1) - 1
        places = np.flatnonzero(counts[inverse] > 1)
        return Repeated(places, number[inverse[places]], found[counts > 1])
    counts = np.bincount(values, minlength=bound)
    places = np.flatnonzero(counts[values] > 1)
    again = np.flatnonzero(counts > 1)
    counts[again] = np.arange(len(again))  # from here on: the number of each repeated value
    return Repeated(places, counts[values[places]], again)
