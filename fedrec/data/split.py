"""What of a user's history is trained on, and which item is held out: in one of two ways, decided at preparation.

`leave_one_out`: a user's last interaction is for test, the one before for validation, the rest trains. A user with
fewer than three interactions trains on all of them and is not evaluated. Others' interactions after a held-out one are
trained on: the model knows of a time that the ranking does not.

`temporal`: two moments are the same for everybody. What is before the first trains; the first interaction between the
two is for validation, the first one after the second is for test, with all before it known (what is later is only
recommended from). A user without one is not evaluated there; nobody begins after the first moment.

A run without validation (`evaluation.validation=false`) trains on the history before the test item. Nothing is copied:
a split is a position in the user's own history, computed for all users at once or for those that a client holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedrec.data.types import Interactions

MIN_EVALUATED = 3
"""Interactions that a user needs to be evaluated: one each to train, to validate and to test."""

Split = Literal["train", "validation", "test", "all"]
"""What a history is for: to train on, to rank the validation item (the same), to rank the test item (more), or to
recommend (everything)."""

HeldOut = Literal["validation", "test"]
"""The splits that hold an item out to be ranked."""

_HELD_OUT: dict[Split, int] = {"train": 2, "validation": 2, "test": 1, "all": 0}


@dataclass(frozen=True)
class Histories:
    """Histories of some users, one after the other, oldest interaction first.

    Attributes:
        offsets: int64 [users + 1]; the n-th user's items are `items[offsets[n]:offsets[n + 1]]`.
        items: int32 [sum of lengths], catalogue rows; a copy.
    """

    offsets: NDArray[np.int64]
    items: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def of(self, n: int) -> NDArray[np.int32]:
        """Items of the n-th user."""
        return self.items[self.offsets[n] : self.offsets[n + 1]]


def evaluated(
    interactions: Interactions, users: NDArray[np.integer] | None = None, *, of: HeldOut
) -> NDArray[np.bool_]:
    """Which of the users (int [n]; None: all) have an item held out for the split `of`: bool [n]."""
    start, end = _bounds(interactions, users)
    if interactions.cuts is not None:
        validation, test = _cuts(interactions.cuts, users)
        return test > validation if of == "validation" else end > test
    enough: NDArray[np.bool_] = end - start >= MIN_EVALUATED
    return enough


def history_end(
    interactions: Interactions, split: Split, users: NDArray[np.integer] | None = None
) -> NDArray[np.int64]:
    """Positions in `interactions.items` at which the users' histories for `split` end (exclusive): int64 [n].

    For a user that is evaluated this is also the position of the item that is held out for `split`
    (validation or test). Where nothing of a user is held out, its history is all it has; with a split by time, all
    before the cut.
    """
    start, end = _bounds(interactions, users)
    if interactions.cuts is not None:
        validation, test = _cuts(interactions.cuts, users)
        return {"train": validation, "validation": validation, "test": test, "all": end}[split]
    return np.where(end - start >= MIN_EVALUATED, end - _HELD_OUT[split], end)


def histories(interactions: Interactions, split: Split, users: NDArray[np.integer] | None = None) -> Histories:
    """The users' histories for `split`, copied into columns of their own, in the order of `users`."""
    start, _ = _bounds(interactions, users)
    lengths = history_end(interactions, split, users) - start
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    # Position p of the copy lies in user n's stretch and comes from start[n] + (p - offsets[n]).
    source = np.arange(offsets[-1]) + np.repeat(start - offsets[:-1], lengths)
    return Histories(offsets, np.asarray(interactions.items[source]))


def targets(interactions: Interactions, split: HeldOut, users: NDArray[np.integer] | None = None) -> NDArray[np.int32]:
    """The held-out items: int32 [n], -1 for a user that is not evaluated there."""
    there = evaluated(interactions, users, of=split)
    items = np.full(len(there), -1, dtype=np.int32)
    items[there] = interactions.items[history_end(interactions, split, users)[there]]
    return items


def _bounds(
    interactions: Interactions, users: NDArray[np.integer] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    offsets = interactions.offsets
    if users is None:
        return offsets[:-1], offsets[1:]
    chosen = np.asarray(users)
    return offsets[chosen], offsets[chosen + 1]


def _cuts(cuts: NDArray[np.int64], users: NDArray[np.integer] | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    chosen = cuts if users is None else cuts[np.asarray(users)]
    return chosen[:, 0], chosen[:, 1]
