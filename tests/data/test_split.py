"""Leave-one-out, for all users and for some, against the definition in three lines of Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedrec.data.split import Split, evaluated, histories, history_end, targets
from fedrec.data.types import Interactions

Make = Callable[[Sequence[Sequence[int]]], Interactions]
USERS = st.lists(st.lists(st.integers(0, 9), max_size=7), min_size=1, max_size=12)


SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def oracle(history: list[int], split: Split) -> tuple[list[int], int]:
    """(history for the split, held-out item or -1)."""
    if len(history) < 3:
        return history, -1
    return (history[:-1], history[-1]) if split == "test" else (history[:-2], history[-2])


@given(users=USERS, data=st.data())
def test_it_is_leave_one_out(users: list[list[int]], data: Any, interactions: Make) -> None:
    made = interactions(users)
    subset = np.array(data.draw(st.lists(st.integers(0, len(users) - 1))), dtype=np.int64)
    everybody = np.arange(len(users))
    for split in SPLITS:
        for chosen, argument in ((everybody, None), (subset, subset)):
            found = histories(made, split, argument)
            expected = [oracle(users[user], split) for user in chosen]
            assert [found.of(n).tolist() for n in range(len(found))] == [history for history, _ in expected]
            assert found.items.dtype == np.int32
            ends = history_end(made, split, argument)
            assert (ends - made.offsets[chosen]).tolist() == [len(history) for history, _ in expected]
            if split != "train":
                assert targets(made, split, argument).tolist() == [item for _, item in expected]
            assert evaluated(made, argument, of="test").tolist() == [len(users[user]) >= 3 for user in chosen]


def test_by_hand(interactions: Make) -> None:
    made = interactions([[7, 8, 9, 6], [1, 2], [3, 4, 5]])
    assert [histories(made, "train").of(user).tolist() for user in range(3)] == [[7, 8], [1, 2], [3]]
    assert [histories(made, "test").of(user).tolist() for user in range(3)] == [[7, 8, 9], [1, 2], [3, 4]]
    assert targets(made, "validation").tolist() == [9, -1, 4]
    assert targets(made, "test").tolist() == [6, -1, 5]


def test_a_copied_history_does_not_write_through(interactions: Make) -> None:
    made = interactions([[1, 2, 3]])
    histories(made, "test").items[:] = 0
    assert made.items.tolist() == [1, 2, 3]
