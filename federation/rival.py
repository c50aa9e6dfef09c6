"""The baseline that a simulated run is compared with, user by user: what each user's result under it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Rival:
    """A baseline.

    Attributes:
        name: Of the baseline.
        keys: uint64 [users], the keys of the users whom it ranks, ascending.
        values: float64 [users], the result of each, by the metric that models are compared by.
    """

    name: str
    keys: NDArray[np.uint64]
    values: NDArray[np.float64]

    def of(self, keys: NDArray[np.uint64]) -> NDArray[np.float64]:
        """The results of users, float64 [keys]; 0 for who is not ranked."""
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[places] == keys, self.values[places], 0.0)
