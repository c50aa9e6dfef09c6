"""Who is in the federation: users by their opaque keys, and the node on which each lives now."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from federation.cohorts.base import CohortSampling, Roots
from fedrec.core.errors import FederationError
from fedrec.networks.base import Network

_AWAY = -1


class Share(NamedTuple):
    """The part of a cohort that lives on one node: the users' numbers in the directory, and their slots on the node."""

    users: NDArray[np.int64]
    slots: NDArray[np.int32]


class Directory:
    """Users are numbered in the order in which they were first seen; a number is never given again."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        # Room for more users than there are, so that many small nodes can join at a cost of their own size.
        self._keys: NDArray[np.uint64] = np.zeros(0, dtype=np.uint64)
        self._place: NDArray[np.int32] = np.zeros(0, dtype=np.int32)
        self._slot: NDArray[np.int32] = np.zeros(0, dtype=np.int32)
        self._group: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._grades: dict[int, str] = {}
        self._places: dict[int, int] = {}
        self._node_at: list[int] = []
        self._users_of: dict[int, NDArray[np.int64]] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def restore(self, keys: NDArray[np.uint64], groups: NDArray[np.int64]) -> None:
        """Know these users (uint64 [users]), and their groups (int64 [users]), by the numbers that they had.

        All are away until a node names them.
        """
        self._numbers = {key: number for number, key in enumerate(keys.tolist())}
        self._make_room(len(keys))
        self._keys[: len(keys)] = keys
        self._group[: len(keys)] = groups

    @property
    def keys(self) -> NDArray[np.uint64]:
        """uint64 [users], by number."""
        return self._keys[: len(self)]

    @property
    def groups(self) -> NDArray[np.int64]:
        """int64 [users], the place of each user's group among the run's, by number."""
        return self._group[: len(self)]

    def grade(self, node: int) -> str:
        """What a node that is here has said of its device."""
        return self._grades.get(node, "")

    @property
    def nodes(self) -> list[int]:
        """Ids of the nodes that are here, in the order in which they joined."""
        return list(self._users_of)

    @property
    def here(self) -> NDArray[np.int64]:
        """Numbers of the users whose nodes are here, ascending."""
        return np.flatnonzero(self._place != _AWAY)

    def users_of(self, node: int) -> int:
        """Number of users who live on a node that is here."""
        return len(self._users_of[node])

    def unknown(self, keys: NDArray[np.uint64]) -> int:
        """How many of the keys no node has ever named."""
        return sum(key not in self._numbers for key in keys.tolist())

    def join(
        self, node: int, keys: NDArray[np.uint64], groups: NDArray[np.int64] | None = None, grade: str = ""
    ) -> list[int]:
        """A node tells its users' keys and groups (None: all of the first); users who were away have come back.

        Other nodes that named one of them leave, and are returned: most likely each is this one under a former id, and
        if not, two live nodes hold copies of one state-dir, and only one of them can be asked for these users.

        Raises FederationError if a key occurs twice, or a user is of another group than before.
        """
        groups = np.zeros(len(keys), dtype=np.int64) if groups is None else groups
        if len(np.unique(keys)) != len(keys):
            raise FederationError(f"node {node} names a user twice: every user of a node needs an id of its own")
        named = keys.tolist()
        known = np.array([self._numbers.get(key, _AWAY) for key in named], dtype=np.int64)
        back = known != _AWAY
        if moved := int((self._group[known[back]] != groups[back]).sum()):
            raise FederationError(
                f"node {node} names other groups for {moved} of its users than they were of before: a user stays in "
                "its group for the whole run"
            )
        self.leave(node)
        taken = set(self._place[known[back]].tolist()) - {_AWAY}
        replaced = [self._node_at[place] for place in sorted(taken)]
        for other in replaced:
            self.leave(other)
        numbers = np.array([self._numbers.setdefault(key, len(self._numbers)) for key in named], dtype=np.int64)
        self._make_room(len(self._numbers))
        self._keys[numbers] = keys
        self._group[numbers] = groups
        self._grades[node] = grade
        if node not in self._places:
            self._places[node] = len(self._node_at)
            self._node_at.append(node)
        self._place[numbers] = self._places[node]
        self._slot[numbers] = np.arange(len(keys))
        self._users_of[node] = numbers
        return replaced

    def _make_room(self, users: int) -> None:
        if users > len(self._keys):
            more = max(users, 2 * len(self._keys)) - len(self._keys)
            self._keys = np.pad(self._keys, (0, more))
            self._place = np.pad(self._place, (0, more), constant_values=_AWAY)
            self._slot = np.pad(self._slot, (0, more))
            self._group = np.pad(self._group, (0, more))

    def leave(self, node: int) -> None:
        """A node is gone; its users stay known, and away until some node names them again."""
        self._grades.pop(node, None)
        users = self._users_of.pop(node, None)
        if users is not None:
            self._place[users] = _AWAY

    def there(self, network: Network, round: int) -> NDArray[np.int64]:
        """Numbers of the users whose nodes are here and who, by `network`, are there in a round, ascending."""
        here = self.here
        return here[network.there(self._keys[here], round)]

    def cohort(
        self,
        sampling: CohortSampling,
        round: int,
        fraction: float,
        roots: Roots,
        there: NDArray[np.int64] | None = None,
    ) -> NDArray[np.int64]:
        """Numbers of the users who train in a round, as `sampling` chooses them among those who are `there`.

        None: all whose nodes are here.
        """
        there = self.here if there is None else there
        return there[sampling.choose(self._keys[there], round, fraction, roots)]

    def shares(self, users: NDArray[np.int64]) -> dict[int, Share]:
        """Those of the users who are here, by node: nodes in the order in which they first joined, slots ascending."""
        users = users[self._place[users] != _AWAY]
        order = np.lexsort((self._slot[users], self._place[users]))
        users = users[order]
        places, starts = np.unique(self._place[users], return_index=True)
        # Of no users numpy makes one part, which is empty.
        parts = zip(places.tolist(), np.split(users, starts[1:]), strict=False)
        return {self._node_at[place]: Share(mine, self._slot[mine]) for place, mine in parts}
