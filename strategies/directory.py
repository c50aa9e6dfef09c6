"""Who is in the federation: users by their opaque keys, and the node on which each lives now."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedrec.errors import FederationError
from fedrec.rng import counter_bits, derive

_AWAY = -1


class Share(NamedTuple):
    """The part of a cohort that lives on one node: the users' numbers in the directory, and their slots on the node."""

    users: NDArray[np.int64]
    slots: NDArray[np.int32]


class Directory:
    """Users are numbered in the order in which they were first seen; a number is never given again."""

    def __init__(self) -> None:
        self.keys: NDArray[np.uint64] = np.zeros(0, dtype=np.uint64)
        self._place: NDArray[np.int32] = np.zeros(0, dtype=np.int32)
        self._slot: NDArray[np.int32] = np.zeros(0, dtype=np.int32)
        self._places: dict[int, int] = {}
        self._here: list[int] = []

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def nodes(self) -> list[int]:
        """Ids of the nodes that are known, in the order in which they joined."""
        return list(self._here)

    def join(self, node: int, keys: NDArray[np.uint64]) -> None:
        """A node tells the keys of its users; users who were on another node have moved to this one.

        Raises FederationError if a key occurs twice, or lives on another node that is still here.
        """
        if len(np.unique(keys)) != len(keys):
            raise FederationError(f"node {node} names a user twice: every user of a node needs an id of its own")
        self.leave(node)
        order = np.argsort(self.keys)
        at = np.searchsorted(self.keys, keys, sorter=order)
        known = np.zeros(len(keys), dtype=np.bool_)
        inside = at < len(self.keys)
        known[inside] = self.keys[order[at[inside]]] == keys[inside]
        numbers = order[at[known]]
        if elsewhere := int((self._place[numbers] != _AWAY).sum()):
            raise FederationError(
                f"node {node} names {elsewhere} users who live on another node too: give each site its own users (or "
                "its own secret, if different people share an id)"
            )
        place = self._places.setdefault(node, len(self._places))
        slots = np.arange(len(keys), dtype=np.int32)
        self._place[numbers], self._slot[numbers] = place, slots[known]
        fresh = ~known
        self.keys = np.concatenate([self.keys, keys[fresh]])
        self._place = np.concatenate([self._place, np.full(int(fresh.sum()), place, dtype=np.int32)])
        self._slot = np.concatenate([self._slot, slots[fresh]])
        self._here.append(node)

    def leave(self, node: int) -> None:
        """A node is gone; its users stay known, and away until some node names them again."""
        if node in self._here:
            self._here.remove(node)
            self._place[self._place == self._places[node]] = _AWAY

    def cohort(self, seed: int, round: int, fraction: float) -> NDArray[np.int64]:
        """The users of a round: the `fraction` of those here with the smallest number drawn from (seed, round, key).

        It depends on nothing but who is here, so that any layout of the users on nodes chooses the same ones.
        """
        here = np.flatnonzero(self._place != _AWAY)
        size = max(1, round_half_up(fraction * len(here)))
        ticket = counter_bits(derive(seed, "cohort"), round, self.keys[here])
        return np.sort(here[np.lexsort((self.keys[here], ticket))[:size]]) if len(here) else here

    def shares(self, users: NDArray[np.int64]) -> dict[int, Share]:
        """The users by node, nodes in the order in which they joined, slots ascending."""
        order = np.lexsort((self._slot[users], self._place[users]))
        users = users[order]
        places, starts = np.unique(self._place[users], return_index=True)
        by_place = dict(zip(places.tolist(), np.split(users, starts[1:]), strict=True))
        here = {node: by_place.get(self._places[node]) for node in self._here}
        return {node: Share(mine, self._slot[mine]) for node, mine in here.items() if mine is not None}


def round_half_up(value: float) -> int:
    """The nearest whole number, halves upwards (the built-in rounds halves to even)."""
    return int(value + 0.5)
