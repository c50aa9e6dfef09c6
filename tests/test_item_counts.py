"""Counting items under local differential privacy: the reports, their privacy, and what the sums are worth."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedrec.core.rng import counter_bits
from fedrec.wire import item_counts
from fedrec.wire.item_counts import ItemCounting, estimate, report_sum, reports

ITEMS = 40


def users(sets: Sequence[Sequence[int]], seed: int = 0) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    keys = counter_bits(seed, np.arange(len(sets)))
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in sets])]).astype(np.int64)
    return keys, offsets, np.array([item for row in sets for item in row], dtype=np.int64)


def drawn_sets(count: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.permutation(ITEMS)[: rng.integers(0, 15)].tolist() for _ in range(count)]


def test_without_noise_the_sums_are_the_counts() -> None:
    sets = [[3, 5, 3], [], [5], [39, 0, 5]]
    found = report_sum(ItemCounting(10, None), ITEMS, 1, *users(sets))
    truth = Counter(item for row in sets for item in set(row))
    assert found.tolist() == [truth[item] for item in range(ITEMS)]
    assert estimate(ItemCounting(10, None), found, 4).tolist() == found.tolist()


def test_without_noise_a_long_history_gives_a_random_part() -> None:
    chosen = Counter[int]()
    for seed in range(600):
        bits = next(iter(reports(ItemCounting(4, None), ITEMS, seed, *users([range(10)], seed))))
        assert bits.sum() == 4
        chosen.update(np.flatnonzero(bits[0]).tolist())
    assert set(chosen) == set(range(10))
    assert all(abs(count - 240) < 5 * math.sqrt(600 * 0.4 * 0.6) for count in chosen.values())


@pytest.mark.parametrize("epsilon", [None, 0.5, 4.0])
@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 30), cuts=st.lists(st.integers(0, 30), max_size=4), seed=st.integers(0, 1000))
def test_the_sum_does_not_depend_on_who_reports_together(
    epsilon: float | None, count: int, cuts: list[int], seed: int
) -> None:
    counting = ItemCounting(5, epsilon)
    keys, offsets, items = users(drawn_sets(count, seed), seed)
    whole = report_sum(counting, ITEMS, 7, keys, offsets, items)
    places = sorted({0, count, *(cut for cut in cuts if cut < count)})
    parts = np.zeros(ITEMS, dtype=np.int64)
    for start, end in itertools.pairwise(places):
        mine = items[offsets[start] : offsets[end]]
        # The order of a user's items does not matter either: a set has none.
        part = offsets[start : end + 1] - offsets[start]
        mine = np.concatenate([np.sort(row)[::-1] for row in np.split(mine, part[1:-1])]) if len(mine) else mine
        parts += report_sum(counting, ITEMS, 7, keys[start:end], part, mine)
    assert whole.tolist() == parts.tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(item_counts, "_BITS_AT_ONCE", 3 * ITEMS)
        assert report_sum(counting, ITEMS, 7, keys, offsets, items).tolist() == whole.tolist()


def frequencies(history: Sequence[int], counting: ItemCounting, n_items: int, times: int, seed: int) -> Counter[int]:
    """How often each whole report (as a number) comes from one history, over many keys."""
    sets = [history] * times
    found = Counter[int]()
    for bits in reports(counting, n_items, 3, *users(sets, seed)):
        found.update((bits @ (1 << np.arange(n_items))).tolist())
    return found


@pytest.mark.parametrize("epsilon", [0.5, 1.5])
def test_no_report_tells_two_sets_apart_by_more_than_e_to_the_epsilon(epsilon: float) -> None:
    """All reports over three items, from very different histories: nothing, one item, another, all of them."""
    counting, times = ItemCounting(2, epsilon), 40_000
    histories: list[list[int]] = [[], [0], [2], [0, 1, 2]]
    found = [frequencies(history, counting, 3, times, seed) for seed, history in enumerate(histories)]
    for first in found:
        for second in found:
            for report in range(8):
                error = 5 * (math.sqrt(first[report]) + math.sqrt(second[report] * math.exp(2 * epsilon)))
                assert first[report] <= math.exp(epsilon) * second[report] + error


def test_bits_are_1_as_often_as_the_mechanism_says() -> None:
    counting, times = ItemCounting(2, 1.0), 40_000
    ones = report_sum(counting, 4, 3, *users([[1]] * times))
    q = counting.flipped
    expected = times * np.array([q, (0.5 + q) / 2, q, q])  # the item is drawn half of the time, else a dummy
    assert np.all(np.abs(ones - expected) < 5 * math.sqrt(times * 0.25))


def test_a_user_asked_again_says_the_same() -> None:
    """So that no average over many answers removes the noise."""
    given_ = users(drawn_sets(20))
    first = report_sum(ItemCounting(5, 1.0), ITEMS, 7, *given_)
    assert report_sum(ItemCounting(5, 1.0), ITEMS, 7, *given_).tolist() == first.tolist()
    assert report_sum(ItemCounting(5, 1.0), ITEMS, 8, *given_).tolist() != first.tolist()


def differing(first: ItemCounting, second: ItemCounting, sets: Sequence[Sequence[Sequence[int]]]) -> float:
    """Bits in which the reports of the same users differ, in the mean over them."""
    found = [np.concatenate(list(reports(r, ITEMS, 7, *users(s)))) for r, s in zip((first, second), sets, strict=True)]
    return float((found[0] != found[1]).sum(1).mean())


@pytest.mark.parametrize("changed", ["set", "epsilon", "items"])
def test_a_report_about_another_set_or_by_other_rules_has_draws_of_its_own(changed: str) -> None:
    """Else the two would differ in nothing but what was drawn, and tell it with certainty."""
    before = drawn_sets(200)
    after = [sorted({*row, 39}) if row != [39] else [] for row in before] if changed == "set" else before
    rules = ItemCounting(5, 1.0)
    others = ItemCounting(5 + (changed == "items"), 1.0 + 0.01 * (changed == "epsilon"))
    differ = [row for row, (a, b) in enumerate(zip(before, after, strict=True)) if set(a) != set(b)]
    chosen = differ if changed == "set" else list(range(200))
    sets = [[column[row] for row in chosen] for column in (before, after)]
    q = rules.flipped
    assert differing(rules, others, sets) == pytest.approx(ITEMS * 2 * q * (1 - q), rel=0.1)


def test_the_estimate_is_near_the_truth_for_many_users_and_little_noise() -> None:
    rng = np.random.default_rng(0)
    popularity = np.arange(1, ITEMS + 1) / ITEMS
    sets = [np.flatnonzero(rng.random(ITEMS) < popularity * 0.2).tolist() for _ in range(20_000)]
    truth = np.bincount(np.concatenate([np.array(row, dtype=np.int64) for row in sets]), minlength=ITEMS)
    counting = ItemCounting(12, 6.0)
    found = estimate(counting, report_sum(counting, ITEMS, 5, *users(sets)), len(sets))
    assert np.corrcoef(found, truth)[0, 1] > 0.95
    assert abs(found.mean() - truth.mean()) < 0.05 * truth.mean()


def test_where_noise_drowns_the_signal_all_items_count_alike() -> None:
    counting = ItemCounting(5, 0.1)
    found = estimate(counting, report_sum(counting, ITEMS, 5, *users(drawn_sets(50))), 50)
    q = counting.flipped
    assert found.std() < 0.5 * 5 * math.sqrt(50 * q * (1 - q)) / (0.5 - q), "half of the plain estimate's, at most"


def test_equal_sums_are_equal_counts() -> None:
    counting = ItemCounting(5, 2.0)
    found = estimate(counting, np.full(ITEMS, 10), 30)
    assert len(set(found.tolist())) == 1
    assert found[0] == pytest.approx((10 - 30 * counting.flipped) * 5 / (0.5 - counting.flipped))
