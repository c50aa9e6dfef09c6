"""Who is chosen depends on the users, not on where they live."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.cohorts.base import Roots
from federation.cohorts.fixed import FixedCohort, FixedConfig, round_half_up
from federation.directory import Directory
from fedrec.core.errors import FederationError

FIXED = FixedCohort(FixedConfig("fixed"))
KEYS = np.random.default_rng(0).integers(0, 2**64, 200, dtype=np.uint64)


def spread(keys: np.ndarray, nodes: int) -> Directory:
    directory = Directory()
    for node in range(nodes):
        directory.join(1000 - node, keys[node::nodes])
    return directory


def chosen(directory: Directory, round: int, fraction: float = 0.1) -> set[int]:
    return set(directory.keys[directory.cohort(FIXED, round, fraction, Roots(7, 0))].tolist())


@pytest.mark.parametrize("nodes", [2, 7, 200])
def test_the_cohort_does_not_depend_on_the_layout(nodes: int) -> None:
    one, many = spread(KEYS, 1), spread(KEYS, nodes)
    for round in range(5):
        assert chosen(one, round) == chosen(many, round)


def test_cohorts_differ_by_round_and_reach_everyone() -> None:
    directory = spread(KEYS, 3)
    seen = set()
    for round in range(100):
        now = chosen(directory, round)
        assert len(now) == 20
        seen |= now
    assert len(seen) == 200


@given(fraction=st.floats(0.001, 1.0), users=st.integers(1, 50))
def test_the_cohort_has_the_asked_size_and_at_least_one_user(fraction: float, users: int) -> None:
    cohort = spread(KEYS[:users], 1).cohort(FIXED, 1, fraction, Roots(0, 0))
    assert len(np.unique(cohort)) == max(1, round_half_up(fraction * users))


def test_shares_name_each_user_once_by_its_slot_on_its_node() -> None:
    directory = spread(KEYS, 4)
    shares = directory.shares(directory.cohort(FIXED, 1, 0.5, Roots(7, 0)))
    assert sum(len(share.users) for share in shares.values()) == 100
    for node, share in shares.items():
        np.testing.assert_array_equal(KEYS[1000 - node :: 4][share.slots], directory.keys[share.users])
        assert (np.diff(share.slots) > 0).all()


def test_a_user_keeps_its_number_when_its_node_comes_back_under_another_id() -> None:
    directory = Directory()
    directory.join(1, KEYS[:3])
    directory.join(2, KEYS[3:5])
    directory.leave(1)
    assert len(directory.cohort(FIXED, 1, 1.0, Roots(0, 0))) == 2
    directory.join(9, KEYS[[2, 0, 1, 10]])
    assert len(directory) == 6
    np.testing.assert_array_equal(directory.keys[:5], KEYS[:5])
    share = directory.shares(np.arange(6))[9]
    np.testing.assert_array_equal(directory.keys[share.users], KEYS[[2, 0, 1, 10]][share.slots])


def test_a_node_that_joins_again_replaces_its_users() -> None:
    directory = Directory()
    directory.join(1, KEYS[:3])
    directory.join(1, KEYS[1:3])
    assert directory.nodes == [1]
    assert len(directory.cohort(FIXED, 1, 1.0, Roots(0, 0))) == 2


def test_a_node_that_names_users_of_others_comes_in_their_place() -> None:
    directory = Directory()
    for node, users in ((1, KEYS[:3]), (2, KEYS[3:5]), (3, KEYS[5:7])):
        assert directory.join(node, users) == []
    assert directory.join(4, KEYS[2:5]) == [1, 2]
    assert directory.nodes == [3, 4]
    np.testing.assert_array_equal(directory.keys[directory.here], KEYS[2:7])
    assert directory.join(4, KEYS[2:5]) == []
    np.testing.assert_array_equal(directory.shares(directory.here)[4].slots, [0, 1, 2])


def test_a_node_that_names_a_user_twice_is_refused() -> None:
    directory = Directory()
    with pytest.raises(FederationError, match="names a user twice"):
        directory.join(3, KEYS[[4, 4]])


@given(st.lists(st.tuples(st.integers(0, 4), st.sets(st.integers(0, 9), max_size=4)), max_size=30))
def test_who_lives_where_is_what_was_said_last(said: list[tuple[int, set[int]]]) -> None:
    """Against a plain account: node by node what it named last, until it leaves or another names one of its users."""
    directory, lives = Directory(), dict[int, list[int]]()
    for node, users in said:
        lives.pop(node, None)
        if users:
            replaced = directory.join(node, KEYS[sorted(users)])
            gone = {other for other, mine in lives.items() if users & set(mine)}
            assert set(replaced) == gone
            lives = {other: mine for other, mine in lives.items() if other not in gone} | {node: sorted(users)}
        else:
            directory.leave(node)
    found = directory.shares(np.arange(len(directory)))
    assert {node: directory.keys[share.users].tolist() for node, share in found.items()} == {
        node: KEYS[mine].tolist() for node, mine in lives.items()
    }
    assert all(share.slots.tolist() == list(range(len(share.slots))) for share in found.values())
    assert sorted(directory.keys[directory.here].tolist()) == sorted(
        KEYS[[user for mine in lives.values() for user in mine]].tolist()
    )
    assert all(directory.users_of(node) == len(mine) for node, mine in lives.items())
