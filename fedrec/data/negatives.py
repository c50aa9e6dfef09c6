"""Negative items: uniform over the eligible items that a user does not know, without rejection and without a loop.

A user who knows s of the E eligible items has E - s unknown ones. A number r in [0, E - s) *is* the r-th of them: with
the positions p_0 < p_1 < ... of the known items among the eligible ones, p_i - i unknown items stand before the i-th
known one, so the r-th unknown item stands at position r + (how many i have p_i - i <= r). That count is one binary
search, and the searches of a whole cohort are one `searchsorted` over the users' rows laid end to end. Where a table of
all users' unknown items is not much larger than what they know, it is written out instead, and a draw is one look-up.

Draws are counter-based in (user key, step, position, k): which users are drawn beside it, in which chunk or on which
node, cannot change a user's negatives. The same order statistics serve training and the sampled ranking protocol.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import DataError
from fedrec.core.rng import counter_bits, counter_integers

NO_ITEM = -1
"""Stands where there is no negative to give; never a row of a table."""

_LISTED_PER_KNOWN = 64
"""Up to this many pairs of user and eligible item for each known one, the unknown ones are listed."""


def sorted_distinct(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """The distinct values, ascending; by sorting, which is eight times faster here than the hashing of `np.unique`."""
    ordered = np.sort(values)
    first = np.ones(len(ordered), dtype=bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return ordered[first]


class Negatives(NamedTuple):
    """Negatives of a cohort.

    Attributes:
        items: int64 [rows, per row], catalogue rows; `NO_ITEM` in the rows of exhausted users.
        exhausted: bool [users], the users who know every eligible item and so have no negatives.
    """

    items: NDArray[np.int64]
    exhausted: NDArray[np.bool_]


class UnknownItems:
    """For each user of a cohort, the eligible items that this user does not know, addressed by number.

    Made by `NegativeSampler.unknown`; holds one int64 for every known eligible item, and no user-by-item matrix unless
    that is of the same order.

    Attributes:
        counts: int64 [users], how many eligible items each user does not know.
    """

    def __init__(self, eligible: NDArray[np.int64], rows: NDArray[np.int64], positions: NDArray[np.int64], users: int):
        """Known items as pairs (user `rows`, `positions` in `eligible`), in any order, repeated or not."""
        self._eligible = eligible
        self.counts: NDArray[np.int64]
        self._listed: NDArray[np.int64] | None = None
        if users * len(eligible) <= _LISTED_PER_KNOWN * len(rows):
            unknown = np.ones((users, len(eligible)), dtype=np.bool_)
            unknown[rows, positions] = False
            self.counts = np.count_nonzero(unknown, axis=1)
            self._starts = np.cumsum(self.counts) - self.counts
            self._listed = np.flatnonzero(unknown)
            return
        stride = len(eligible) + 1  # p - i lies in [0, E], so a user's keys never reach the next user's
        pairs = sorted_distinct(rows * stride + positions)
        owners = pairs // stride
        known = np.bincount(owners, minlength=users).astype(np.int64)
        self._stride = stride
        self._starts = np.cumsum(known) - known
        self._keys = pairs - (np.arange(len(pairs)) - self._starts[owners])
        self.counts = len(eligible) - known

    @property
    def users(self) -> int:
        """Number of users."""
        return len(self.counts)

    def items(self, users: NDArray[np.int64], numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The `numbers`-th unknown item (catalogue row) of `users`; the two broadcast, numbers lie in [0, counts)."""
        if self._listed is not None:
            listed: NDArray[np.int64] = self._listed[self._starts[users] + numbers] % len(self._eligible)
            return self._eligible[listed]
        known_before = np.searchsorted(self._keys, users * self._stride + numbers, side="right") - self._starts[users]
        found: NDArray[np.int64] = self._eligible[numbers + known_before]
        return found

    def draw(
        self, seed: int, keys: NDArray[np.uint64], lengths: NDArray[np.int64], step: int, per_row: int
    ) -> Negatives:
        """Independent uniform draws (with replacement): `per_row` for each of the `lengths[u]` rows of user u.

        Args:
            seed: Root of the draws; secret when deployed, since negatives show what a user does not know.
            keys: [users], the users' stable keys.
            lengths: [users], rows of each user: its training items for pairwise losses, 1 for draws that are shared.
            step: Counter that makes draws fresh (round and local epoch).
            per_row: Draws in each row.
        """
        owners = np.repeat(np.arange(self.users), lengths)
        within = np.arange(len(owners)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        exhausted = self.counts == 0
        drawn = np.full((len(owners), per_row), NO_ITEM, dtype=np.int64)
        able: Any = slice(None)  # the usual case copies nothing
        if exhausted.any():
            able = ~exhausted[owners]
            owners, within = owners[able], within[able]
        if len(owners) and per_row:
            column = owners[:, None]
            of_user = counter_bits(seed, keys, step)
            numbers = counter_integers(
                of_user[column], self.counts[column], within[:, None], np.arange(per_row)[None, :]
            )
            drawn[able] = self.items(column, numbers)
        return Negatives(drawn, exhausted)

    def distinct(self, seed: int, keys: NDArray[np.uint64], n: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """A uniformly random set of n different unknown items for each user; all of them where there are fewer.

        Floyd's algorithm (Bentley and Floyd, CACM 1987), over all users at once. The order within a set is not random.

        Args:
            seed: Root of the draws.
            keys: [users], the users' stable keys: the set is a function of seed, key, n and what the user knows.
            n: Size of each set.

        Returns:
            Items int64 [users, n], `NO_ITEM` past the end of a short set, and bool [users, n], true where an item is.
        """
        sizes = np.minimum(self.counts, n)
        numbers = np.full((self.users, n), NO_ITEM, dtype=np.int64)
        for i in range(int(sizes.max(initial=0))):
            top = self.counts - sizes + i
            chosen = counter_integers(seed, top + 1, keys, i)
            taken = (numbers[:, :i] == chosen[:, None]).any(axis=1)
            numbers[:, i] = np.where(taken, top, chosen)
        valid = np.arange(n)[None, :] < sizes[:, None]
        drawn = np.full((self.users, n), NO_ITEM, dtype=np.int64)
        owners, places = np.nonzero(valid)
        drawn[owners, places] = self.items(owners, numbers[owners, places])
        return drawn, valid


class NegativeSampler:
    """Draws negatives among the eligible items.

    Args:
        eligible: [E], the catalogue rows that may be drawn, strictly ascending.

    Raises:
        DataError: `eligible` is empty, negative or not strictly ascending.
    """

    def __init__(self, eligible: NDArray[np.integer[Any]]) -> None:
        rows = np.asarray(eligible, dtype=np.int64)
        if rows.ndim != 1 or not len(rows) or rows[0] < 0 or (rows[1:] <= rows[:-1]).any():
            raise DataError("the list of eligible items must hold one or more rows >= 0, each once, in ascending order")
        self.eligible: NDArray[np.int64] = rows
        # One entry past the last eligible row, so that every later row is looked up there.
        self._position = np.full(int(rows[-1]) + 2, NO_ITEM, dtype=np.int64)
        self._position[rows] = np.arange(len(rows))

    def contains(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
        """Which of the catalogue rows are eligible."""
        listed: NDArray[np.bool_] = self._position[np.minimum(rows, len(self._position) - 1)] >= 0
        return listed

    def unknown(self, offsets: NDArray[np.int64], items: NDArray[np.integer[Any]]) -> UnknownItems:
        """What a cohort does not know, given what it does: user u knows `items[offsets[u]:offsets[u + 1]]`.

        Known items may be in any order, may repeat, and may be not eligible: those change nothing.

        Raises:
            DataError: an item is negative, so it is no catalogue row.
        """
        known = np.asarray(items[offsets[0] : offsets[-1]])
        if len(known) and int(known.min()) < 0:
            raise DataError(f"a user's items must be catalogue rows >= 0, found {int(known.min())}")
        users = len(offsets) - 1
        positions = self._position[np.minimum(known, len(self._position) - 1)]
        owners = np.repeat(np.arange(users), np.diff(offsets))
        listed = positions >= 0
        return UnknownItems(self.eligible, owners[listed], positions[listed], users)

    def draw(
        self,
        seed: int,
        keys: NDArray[np.uint64],
        offsets: NDArray[np.int64],
        items: NDArray[np.integer[Any]],
        step: int,
        per_positive: int,
    ) -> Negatives:
        """`per_positive` negatives for every training item of a cohort: items int64 [training items, per_positive].

        Rows are in the order of `items`; user u's training items are `items[offsets[u]:offsets[u + 1]]`. To draw more
        than once from the same histories, keep `unknown(offsets, items)` and call its `draw`: the results are the same.
        """
        return self.unknown(offsets, items).draw(seed, keys, np.diff(offsets), step, per_positive)
