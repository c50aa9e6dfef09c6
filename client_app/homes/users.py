"""The users who live on a node: their opaque keys, and their histories."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedrec.core.keys import opaque_keys
from fedrec.data import split
from fedrec.data.types import Interactions


@dataclass(frozen=True)
class Cohort:
    """Some users and a history of each, oldest item first.

    Attributes:
        keys: uint64 [users], opaque keys.
        offsets: int64 [users + 1]; the n-th user's items are `items[offsets[n]:offsets[n + 1]]`.
        items: int64 [sum of lengths], catalogue rows.
    """

    keys: NDArray[np.uint64]
    offsets: NDArray[np.int64]
    items: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Items per user."""
        return self.offsets[1:] - self.offsets[:-1]

    def select(self, users: NDArray[np.int64]) -> Cohort:
        """Some of the users, by position, in that order."""
        lengths = self.lengths[users]
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        source = np.arange(offsets[-1]) + np.repeat(self.offsets[users] - offsets[:-1], lengths)
        return Cohort(self.keys[users], offsets, self.items[source])

    def part(self, start: int, end: int) -> Cohort:
        """The users `start` to `end` (exclusive), nothing copied but offsets."""
        first, last = self.offsets[start], self.offsets[end]
        return Cohort(self.keys[start:end], self.offsets[start : end + 1] - first, self.items[first:last])


class LocalUsers:
    """The users of one node; a user's slot is its position here."""

    def __init__(
        self, interactions: Interactions, users: NDArray[np.int64], secret: int, *, validation: bool = True
    ) -> None:
        """Of these rows of `interactions`; without `validation` they train on all but the item held out for test."""
        self._interactions = interactions
        self._users = users
        self._training: split.Split = "train" if validation else "test"
        self.keys = opaque_keys(secret, (interactions.user_ids[user] for user in users))

    def __len__(self) -> int:
        return len(self.keys)

    def evaluated(self, of: split.HeldOut) -> NDArray[np.int64]:
        """Slots of the users who have an item held out for that split, ascending."""
        return np.flatnonzero(split.evaluated(self._interactions, self._users, of=of))

    def training(self, slots: NDArray[np.int64]) -> Cohort:
        """What the users in `slots` train on."""
        return self._cohort(slots, self._training)

    def whole(self, slots: NDArray[np.int64]) -> Cohort:
        """The users in `slots` and everything they know."""
        return self._cohort(slots, "all")

    def ids(self, slots: NDArray[np.int64]) -> list[str]:
        """Their ids in the data."""
        return [self._interactions.user_ids[user] for user in self._users[slots].tolist()]

    def slot_of(self, user_id: str) -> int | None:
        """The slot of a user by its id in the data; None if nobody here has it."""
        ids = self._interactions.user_ids
        return next((slot for slot, user in enumerate(self._users.tolist()) if ids[user] == user_id), None)

    def held_out(self, slots: NDArray[np.int64], of: split.HeldOut) -> tuple[Cohort, NDArray[np.int64]]:
        """The history before the held-out item of that split, and the item (int64 [users]); -1 for who has none."""
        positives = split.targets(self._interactions, of, self._users[slots]).astype(np.int64)
        return self._cohort(slots, of), positives

    def _cohort(self, slots: NDArray[np.int64], of: split.Split) -> Cohort:
        histories = split.histories(self._interactions, of, self._users[slots])
        return Cohort(self.keys[slots], histories.offsets, histories.items.astype(np.int64))
