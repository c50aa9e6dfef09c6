"""The data of a run: a public catalogue of items, and the users' private interactions in compact columns."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Catalogue:
    """The public list of items; an item's position here is its row in every embedding table.

    Attributes:
        item_ids: External ids, as text, without duplicates.
        titles: A short name for people; the id where there is none.
        sentences: The text that the encoder reads, one sentence an item; empty where there is none.
    """

    item_ids: tuple[str, ...]
    titles: tuple[str, ...]
    sentences: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.item_ids)

    @cached_property
    def digest(self) -> str:
        """32 hexadecimal digits that name ids and texts, in order."""
        digest = hashlib.blake2b(digest_size=16)
        for column in (self.item_ids, self.titles, self.sentences):
            for value in column:
                encoded = value.encode()
                digest.update(len(encoded).to_bytes(4, "little") + encoded)
        return digest.hexdigest()


@dataclass(frozen=True)
class Interactions:
    """All users' interactions, user after user, without duplicates, each user's in time order (ties: as in the file).

    Attributes:
        user_ids: External ids, as text, one a user.
        offsets: int64 [users + 1]; user u's items are `items[offsets[u]:offsets[u + 1]]`.
        items: int32 [interactions], catalogue rows. May be a memory map.
        cuts: int64 [users, 2], with a split by time: the positions in `items` at which each user's validation and test
            begin. None: the last two items of each user are held out.
    """

    user_ids: Sequence[str]
    offsets: NDArray[np.int64]
    items: NDArray[np.int32]
    cuts: NDArray[np.int64] | None = None

    @property
    def users(self) -> int:
        """Number of users."""
        return len(self.user_ids)

    def of_users(self, users: NDArray[np.int64]) -> Interactions:
        """Those of some users, by their positions, in that order."""
        lengths = self.offsets[users + 1] - self.offsets[users]
        offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
        moved = offsets[:-1] - self.offsets[users]
        items = self.items[np.arange(offsets[-1]) - np.repeat(moved, lengths)]
        cuts = None if self.cuts is None else self.cuts[users] + moved[:, None]
        return Interactions([self.user_ids[user] for user in users.tolist()], offsets, items, cuts)

    def history(self, user: int) -> NDArray[np.int32]:
        """All items of one user, oldest first."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]


@dataclass(frozen=True)
class DataSummary:
    """Size of a data set at one point of its preparation; `items` are those with at least one interaction."""

    users: int
    items: int
    interactions: int

    @property
    def density(self) -> float:
        """Share of all user-item pairs that occur."""
        cells = self.users * self.items
        return self.interactions / cells if cells else 0.0


@dataclass(frozen=True)
class DataReport:
    """What preparation did: the size before and after, and how many interactions or users met each rule.

    `counts` names every rule that met something, each in units of its own: interactions (`malformed`, `unknown_item`,
    `low_rating`, `duplicate`, `k_core`), lines of the item table (`malformed_item`, `duplicate_item`), listed items
    without an interaction (`unrated_item`), users (`users_too_short`: fewer than three interactions, they train but are
    not evaluated). A split by time counts users who begin after the cut (`users_after_cut`, left out) and who are not
    tested (`users_not_tested`), and items that nobody has before it (`items_after_cut`). `fedrec.data.report` says each
    in words.
    """

    before: DataSummary
    after: DataSummary
    counts: dict[str, int]


@dataclass(frozen=True)
class Dataset:
    """A prepared data set: `eligible` are the rows (sorted, int32) that may be recommended or drawn as negatives."""

    name: str
    catalogue: Catalogue
    interactions: Interactions
    eligible: NDArray[np.int32]
    report: DataReport
