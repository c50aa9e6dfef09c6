"""Where the versions of users' private tensors lie: an index in memory of a file that is written piece by piece.

Pieces are numbered in the order in which they were written. Versions that are no longer needed are removed with the
oldest pieces, after what is still needed of these was written again at the end. So an index is brought up to date by
the new pieces at the end and the number of the first piece that still exists.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_Numbers = NDArray[np.int64]


class VersionIndex:
    """One entry for each version of a user, sorted by user, round and piece.

    Attributes:
        users: uint64 [entries], whose it is.
        rounds: int64 [entries], the round after which it is.
        pieces: int64 [entries], number of the piece that holds it.
        places: int64 [entries], its position there.
        last: Number of the newest piece that was added.
        full: Entries from which on it is worth to look whether many are needed no more.
    """

    def __init__(self) -> None:
        self.users: NDArray[np.uint64] = np.zeros(0, dtype=np.uint64)
        self.rounds: _Numbers = np.zeros(0, dtype=np.int64)
        self.pieces: _Numbers = np.zeros(0, dtype=np.int64)
        self.places: _Numbers = np.zeros(0, dtype=np.int64)
        self.last = 0
        self.full = 0

    def __len__(self) -> int:
        return len(self.users)

    def add(self, users: NDArray[np.uint64], rounds: _Numbers, pieces: _Numbers, places: _Numbers) -> None:
        """Versions in pieces newer than all that were added before.

        Args:
            users: uint64 [versions], whose they are.
            rounds: int64 [versions], the rounds after which they are.
            pieces: int64 [versions], the pieces that hold them.
            places: int64 [versions], their positions there.
        """
        if not len(users):
            return
        order = np.lexsort((pieces, rounds, users))
        users, rounds = users[order], rounds[order]
        at = self._step_back(users, np.searchsorted(self.users, users, side="right"), rounds + 1)
        self.users = np.insert(self.users, at, users)
        self.rounds = np.insert(self.rounds, at, rounds)
        self.pieces = np.insert(self.pieces, at, pieces[order])
        self.places = np.insert(self.places, at, places[order])
        self.last = int(pieces.max())

    def forget(self, first: int) -> None:
        """Pieces numbered below `first` are no more."""
        kept = self.pieces >= first
        if not kept.all():
            self.users, self.rounds = self.users[kept], self.rounds[kept]
            self.pieces, self.places = self.pieces[kept], self.places[kept]

    def newest(self, users: NDArray[np.uint64], before: int) -> _Numbers:
        """Each user's entry of the latest round earlier than `before`; -1 where there is none."""
        limit = np.full(len(users), before)
        after = self._step_back(users, np.searchsorted(self.users, users, side="right"), limit)
        return np.where(self._before(users, after), after - 1, -1)

    def _step_back(self, users: NDArray[np.uint64], at: _Numbers, limit: _Numbers) -> _Numbers:
        """From behind each user's last entry to behind its last of a round below the limit; few steps, if any."""
        while (late := self._before(users, at) & (self.rounds[at - 1] >= limit) if len(self) else at < 0).any():
            at = at - late
        return at

    def _before(self, users: NDArray[np.uint64], at: _Numbers) -> NDArray[np.bool_]:
        """Whether the entry before each position is the user's."""
        if not len(self):
            return np.zeros(len(at), dtype=np.bool_)
        mine: NDArray[np.bool_] = (at > 0) & (self.users[at - 1] == users)
        return mine

    def live(self, checkpoint_round: int) -> NDArray[np.bool_]:
        """Bool [entries]: what may be asked for: versions newer than the checkpoint, and of the others the newest."""
        live = np.ones(len(self), dtype=np.bool_)
        next_round = self.rounds[1:]
        superseded = (next_round <= checkpoint_round) | (next_round == self.rounds[:-1])
        live[:-1] &= ~(superseded & (self.users[1:] == self.users[:-1]))
        return live
