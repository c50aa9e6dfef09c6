"""Negatives cover every eligible item that a user does not know, evenly, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedrec.core.errors import DataError
from fedrec.core.rng import counter_integers
from fedrec.data import negatives
from fedrec.data.negatives import NO_ITEM, NegativeSampler


@pytest.fixture(autouse=True, scope="module", params=[0, 10**9], ids=["searched", "listed"])
def _both_ways(request: pytest.FixtureRequest) -> Iterator[None]:
    """Unknown items are searched for or listed; nothing may depend on which."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(negatives, "_LISTED_PER_KNOWN", request.param)
        yield


Ragged = tuple[NDArray[np.int64], NDArray[np.int64]]


def ragged(histories: list[list[int]]) -> Ragged:
    offsets = np.concatenate(([0], np.cumsum([len(history) for history in histories]))).astype(np.int64)
    return offsets, np.array([item for history in histories for item in history], dtype=np.int64)


def looks_even(counts: NDArray[np.int64]) -> bool:
    """Chi-square against equal counts, below the 99 % quantile for 6 or 9 degrees of freedom."""
    expected = counts.sum() / len(counts)
    quantile = {7: 16.81, 10: 21.67}[len(counts)]
    return float(((counts - expected) ** 2 / expected).sum()) < quantile


def unknown_by_hand(eligible: list[int], history: list[int]) -> list[int]:
    return [item for item in eligible if item not in set(history)]


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[list[int], list[list[int]]]:
    """Eligible rows, and histories that may repeat items, hold items that are not eligible, be empty or know it all."""
    eligible = sorted(draw(st.sets(st.integers(0, 12), min_size=1)))
    anything = st.lists(st.integers(0, 15), max_size=20)
    return eligible, draw(st.lists(st.one_of(anything, st.just(eligible)), min_size=1, max_size=6))


@given(cohorts())
def test_the_numbered_items_are_those_that_a_slow_look_finds(cohort: tuple[list[int], list[list[int]]]) -> None:
    eligible, histories = cohort
    unknown = NegativeSampler(np.array(eligible)).unknown(*ragged(histories))
    for user, history in enumerate(histories):
        expected = unknown_by_hand(eligible, history)
        assert unknown.counts[user] == len(expected)
        numbers = np.arange(len(expected))
        assert unknown.items(np.full(len(expected), user), numbers).tolist() == expected


@given(cohorts(), st.integers(0, 2**64 - 1), st.integers(0, 1000), st.integers(1, 3))
def test_draws_equal_one_user_and_one_draw_at_a_time(
    cohort: tuple[list[int], list[list[int]]], seed: int, step: int, per_positive: int
) -> None:
    eligible, histories = cohort
    keys = np.arange(len(histories), dtype=np.uint64) * np.uint64(2**60 + 7)
    sampler = NegativeSampler(np.array(eligible))
    items, exhausted = sampler.draw(seed, keys, *ragged(histories), step, per_positive)
    row = 0
    for user, history in enumerate(histories):
        left = unknown_by_hand(eligible, history)
        assert exhausted[user] == (not left)
        for position in range(len(history)):
            for k in range(per_positive):
                expected = NO_ITEM
                if left:
                    expected = left[int(counter_integers(seed, len(left), keys[user], step, position, k)[0])]
                assert items[row, k] == expected
            row += 1
    assert row == len(items)


@given(cohorts(), st.integers(0, 2**64 - 1), st.integers(0, 8))
def test_sampled_sets_hold_distinct_unknown_items_and_do_not_depend_on_the_cohort(
    cohort: tuple[list[int], list[list[int]]], seed: int, n: int
) -> None:
    eligible, histories = cohort
    keys = np.arange(len(histories), dtype=np.uint64) + np.uint64(11)
    sampler = NegativeSampler(np.array(eligible))
    items, valid = sampler.unknown(*ragged(histories)).distinct(seed, keys, n)
    for user, history in enumerate(histories):
        left = unknown_by_hand(eligible, history)
        found = items[user, valid[user]].tolist()
        assert len(found) == len(set(found)) == min(n, len(left))
        assert set(found) <= set(left)
        assert (items[user, ~valid[user]] == NO_ITEM).all()
        alone, _ = sampler.unknown(*ragged([history])).distinct(seed, keys[user : user + 1], n)
        assert alone[0].tolist() == items[user].tolist()


def test_every_eligible_unknown_item_is_drawn_evenly_and_nothing_else() -> None:
    eligible = np.array([0, 2, 3, 5, 8, 13, 14, 21, 22, 40])  # the first and the last among them
    history = [2, 13, 22, 7, 99]  # 7 and 99 are not eligible: they change nothing
    left = unknown_by_hand(eligible.tolist(), history)
    items, _ = NegativeSampler(eligible).draw(3, np.array([5], np.uint64), *ragged([history]), 0, 4000)
    values, counts = np.unique(items, return_counts=True)
    assert values.tolist() == left
    assert looks_even(counts)


def test_every_set_is_equally_likely() -> None:
    users = 20_000
    sampler = NegativeSampler(np.arange(6))
    offsets, items = np.arange(users + 1), np.full(users, 4)
    drawn, valid = sampler.unknown(offsets, items).distinct(1, np.arange(users, dtype=np.uint64), 2)
    assert valid.all()
    pairs, counts = np.unique(np.sort(drawn, axis=1), axis=0, return_counts=True)
    assert len(pairs) == 10  # of the 5 unknown items, 2 at a time
    assert looks_even(counts)


def test_draws_do_not_depend_on_who_is_drawn_beside() -> None:
    rng = np.random.default_rng(0)
    histories = [rng.choice(50, size=size, replace=False).tolist() for size in (1, 7, 0, 30, 12)]
    keys = rng.integers(0, 2**63, size=5).astype(np.uint64)
    sampler = NegativeSampler(np.arange(50))
    whole = sampler.draw(9, keys, *ragged(histories), 4, 3).items
    order = [3, 0, 4, 1, 2]
    other = sampler.draw(9, keys[order], *ragged([histories[user] for user in order]), 4, 3).items
    starts, starts_other = ragged(histories)[0], ragged([histories[user] for user in order])[0]
    for place, user in enumerate(order):
        here = other[starts_other[place] : starts_other[place + 1]]
        assert np.array_equal(whole[starts[user] : starts[user + 1]], here)
        alone = sampler.draw(9, keys[user : user + 1], *ragged([histories[user]]), 4, 3).items
        assert np.array_equal(here, alone)


def test_draws_are_fresh_at_every_step_and_for_every_user() -> None:
    histories = [[0, 1, 2], [0, 1, 2]]
    sampler = NegativeSampler(np.arange(10_000))
    keys = np.array([1, 2], dtype=np.uint64)
    first = sampler.draw(0, keys, *ragged(histories), 0, 50).items
    assert np.array_equal(first, sampler.draw(0, keys, *ragged(histories), 0, 50).items)
    assert (first != sampler.draw(0, keys, *ragged(histories), 1, 50).items).mean() > 0.99
    assert (first != sampler.draw(1, keys, *ragged(histories), 0, 50).items).mean() > 0.99
    assert (first[:3] != first[3:]).mean() > 0.99


def test_a_slice_of_a_larger_column_is_read_where_it_lies() -> None:
    offsets, items = ragged([[1, 2], [3], [0, 4, 5]])
    sampler, keys = NegativeSampler(np.arange(8)), np.array([4, 5, 6], dtype=np.uint64)
    whole = sampler.draw(2, keys, offsets, items, 0, 2).items
    assert np.array_equal(sampler.draw(2, keys[1:], offsets[1:], items, 0, 2).items, whole[2:])


def test_draws_shared_by_a_user_are_one_row_each() -> None:
    unknown = NegativeSampler(np.arange(100)).unknown(*ragged([[1, 2, 3], [4]]))
    shared = unknown.draw(0, np.array([1, 2], np.uint64), np.ones(2, np.int64), 0, 40)
    assert shared.items.shape == (2, 40)


def test_a_user_who_knows_everything_is_reported() -> None:
    keys = np.arange(2, dtype=np.uint64)
    items, exhausted = NegativeSampler(np.arange(3)).draw(0, keys, *ragged([[0, 1, 2], [1]]), 0, 2)
    assert exhausted.tolist() == [True, False]
    assert (items[:3] == NO_ITEM).all()
    assert set(items[3].tolist()) <= {0, 2}


@pytest.mark.parametrize("eligible", [[], [3, 1], [1, 1, 2], [-1, 0]])
def test_a_list_of_eligible_items_that_is_none_is_refused(eligible: list[int]) -> None:
    with pytest.raises(DataError, match="eligible"):
        NegativeSampler(np.array(eligible, dtype=np.int64))


def test_a_history_of_no_catalogue_rows_is_refused() -> None:
    with pytest.raises(DataError, match="-4"):
        NegativeSampler(np.arange(3)).unknown(*ragged([[1, -4]]))


def test_which_rows_are_eligible_up_to_the_last_and_past_it() -> None:
    rows = np.array([0, 1, 2, 3, 5, 6, 7, 10**9])
    listed = NegativeSampler(np.array([0, 2, 6])).contains(rows)
    assert listed.tolist() == [True, False, True, False, False, True, False, False]
