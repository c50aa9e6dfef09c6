"""The index of versions against a plain list of them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from client_app.stores.versions import VersionIndex

Entry = tuple[int, int, int, int]
"""User, round, piece, place."""

ONE_PIECE = st.lists(st.tuples(st.sampled_from([0, 3, 2**63, 2**64 - 1]), st.integers(0, 6)), max_size=6)


@st.composite
def histories(draw: st.DrawFn) -> list[list[Entry]]:
    """What was added at once, several times; a user may be named twice, and rounds may come in any order."""
    added, piece = [], 0
    for pieces in draw(st.lists(st.lists(ONE_PIECE, max_size=3), min_size=1, max_size=4)):
        entries = []
        for versions in pieces:
            piece += 1
            entries += [(user, round, piece, place) for place, (user, round) in enumerate(versions)]
        added.append(entries)
    return added


def add(index: VersionIndex, entries: list[Entry]) -> None:
    columns = zip(*entries, strict=True) if entries else ([], [], [], [])
    users, *numbers = columns
    index.add(np.array(users, dtype=np.uint64), *(np.array(column, dtype=np.int64) for column in numbers))


@given(histories(), st.integers(0, 8), st.integers(0, 8), st.integers(0, 12))
def test_it_finds_what_a_list_finds(added: list[list[Entry]], before: int, checkpoint: int, first: int) -> None:
    index = VersionIndex()
    for entries in added:
        add(index, entries)
    index.forget(first)
    left = [entry for entries in added for entry in entries if entry[2] >= first]
    assert len(index) == len(left)
    users = np.array([2**64 - 1, 1, 0, 3, 2**63], dtype=np.uint64)
    for user, at in zip(users.tolist(), index.newest(users, before).tolist(), strict=True):
        mine = [entry[1:] for entry in left if entry[0] == user and entry[1] < before]
        if at < 0:
            assert not mine
        else:
            assert (index.rounds[at], index.pieces[at], index.places[at]) == max(mine)
            assert index.users[at] == user
    live = index.live(checkpoint)
    kept = set(zip(*(column[live].tolist() for column in (index.users, index.rounds, index.pieces)), strict=True))
    wanted = set()
    for user in users.tolist():
        mine = {round: max(e[2:] for e in left if e[:2] == (user, round)) for u, round, *_ in left if u == user}
        old = [round for round in mine if round <= checkpoint]
        wanted |= {(user, round, mine[round][0]) for round in mine if round > checkpoint}
        if old:
            wanted.add((user, max(old), mine[max(old)][0]))
    assert kept == wanted


def test_nothing_is_found_in_nothing() -> None:
    index = VersionIndex()
    index.forget(5)
    assert index.newest(np.array([1, 2], dtype=np.uint64), 9).tolist() == [-1, -1]
    assert index.newest(np.zeros(0, dtype=np.uint64), 9).tolist() == []
    assert len(index.live(3)) == 0
