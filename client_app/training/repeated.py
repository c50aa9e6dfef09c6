"""Which numbers stand several times, in linear time where the range of the numbers allows it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_RANGE_PER_VALUE = 64
"""Up to this many possible numbers for each given one, a table of all of them is cheaper than sorting the given."""


class Repeated(NamedTuple):
    """Numbers that stand often enough.

    Attributes:
        places: int64 [places], where they stand, ascending.
        groups: int64 [places], which of the `values` stands there.
        values: int64 [groups], the numbers, ascending.
    """

    places: NDArray[np.int64]
    groups: NDArray[np.int64]
    values: NDArray[np.int64]


def repeated(values: NDArray[np.int64], bound: int, least: int) -> Repeated:
    """The numbers among `values` that stand there at least so many times.

    Args:
        values: int64 [n], each in [0, bound).
        bound: Size of the range.
        least: How many times; 1 for all of them.
    """
    if bound > _RANGE_PER_VALUE * len(values):
        found, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        number = np.cumsum(counts >= least) - 1
        places = np.flatnonzero(counts[inverse] >= least)
        return Repeated(places, number[inverse[places]], found[counts >= least])
    counts = np.bincount(values, minlength=bound)
    places = np.flatnonzero(counts[values] >= least)
    often = np.flatnonzero(counts >= least)
    counts[often] = np.arange(len(often))  # from here on: the number of each of these values
    return Repeated(places, counts[values[places]], often)
