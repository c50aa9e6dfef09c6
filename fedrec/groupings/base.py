"""The contract of a grouping: which groups there are, and which of them a user belongs to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedrec.core.registry import MemberConfig

EVERYBODY = ""
"""The name of the one group of a run that has no others. Names and messages are then as if there were no groups."""


class Users(NamedTuple):
    """What a device knows when it says which group each of its users belongs to.

    Attributes:
        keys: uint64 [users], opaque keys.
        offsets: int64 [users + 1]; the n-th user trains on `items[offsets[n]:offsets[n + 1]]`.
        items: int64 [sum of lengths], catalogue rows, oldest first.
        word: What the site says of all its users (`group` in the node configuration); empty: nothing.
        labels: uint8 [items of the catalogue], the public label of each, below `Grouping.labels`; empty where there are
            none.
    """

    keys: NDArray[np.uint64]
    offsets: NDArray[np.int64]
    items: NDArray[np.int64]
    word: str = ""
    labels: NDArray[np.uint8] = np.zeros(0, dtype=np.uint8)


class Grouping(ABC):
    """A member of the family `grouping`.

    A user's group is worked out on its device, which tells the server when it joins, and stays the same for the whole
    run. It depends on the user and on what its site says, never on the node or on who else lives there: any layout of
    the users on nodes has the same groups.
    """

    config_class: ClassVar[type[MemberConfig]]

    def __init__(self, config: Any, seed: int) -> None:
        """With the run's public seed."""
        self.config = config
        self.seed = seed

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """The groups, each by a name of at most 32 small letters, digits, `_` and `-`; at least one."""

    @property
    def labels(self) -> int:
        """How many public labels of items it goes by; 0: none, and none are sent.

        An item's label is the place of the nearest of so many centroids of the base table. The server makes them, and a
        device is sent them when it joins.
        """
        return 0

    @abstractmethod
    def assign(self, users: Users) -> NDArray[np.int64]:
        """Of each user the place of its group among `names`, int64 [users].

        Raises ConfigError if the site has not said what it has to.
        """

    def nearest(self, users: Users, here: Sequence[int]) -> NDArray[np.int64]:
        """Of each user the group whose model serves it where only those of `here`, ascending, are, int64 [users].

        By default the first: groups that are drawn, or named by sites, are not near each other.
        """
        return np.full(len(users.keys), here[0], dtype=np.int64)
