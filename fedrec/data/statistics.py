"""What users' histories add to sums that are statistics and no training: each user's part is a vector of its own."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Parts(NamedTuple):
    """Numbers of users in places of a sum, each place once for a user, in the order of users and places.

    Attributes:
        owners: int64 [m], the user of each.
        places: int64 [m], where it is in the sum.
        values: float64 [m].
    """

    owners: NDArray[np.int64]
    places: NDArray[np.int64]
    values: NDArray[np.float64]

    def norms(self, users: int) -> NDArray[np.float64]:
        """The Euclidean norm of each user's part, float64 [users]."""
        found: NDArray[np.float64] = np.sqrt(np.bincount(self.owners, self.values**2, users))
        return found


def items_had(offsets: NDArray[np.int64], items: NDArray[np.int64]) -> Parts:
    """A one for each item that a user has, however often.

    Args:
        offsets: int64 [users + 1]; user u has `items[offsets[u]:offsets[u + 1]]`.
        items: int64, catalogue rows.
    """
    owners = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    owners, places = np.unique(np.stack([owners, items]), axis=1)
    return Parts(owners, places, np.ones(len(places)))
