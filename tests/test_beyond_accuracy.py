"""What lists of recommendations are like, against plain loops and by hand."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedrec.evaluation.beyond_accuracy import ListMetrics, gini


def by_loops(
    lists: list[list[int]], k: int, eligible: list[int], counts: list[int], users: int, vectors: NDArray[np.float32]
) -> dict[str, float]:
    """The same, an item and a pair at a time."""
    firsts = [mine[:k] for mine in lists]
    times = [sum(item in mine for mine in firsts) for item in eligible]
    if not any(times):
        return {}
    pairs = [abs(one - two) for one in times for two in times]
    found = {
        f"coverage@{k}": sum(time > 0 for time in times) / len(times),
        f"gini@{k}": sum(pairs) / len(pairs) / 2 / (sum(times) / len(times)),
    }
    mine = [[counts[item] / users for item in items] for items in firsts if items]
    found[f"popularity@{k}"] = float(np.mean([np.mean(shares) for shares in mine]))
    bits = [[math.log2(users / max(1, counts[item])) for item in items] for items in firsts if items]
    found[f"novelty@{k}"] = float(np.mean([np.mean(each) for each in bits]))
    distances = []
    for items in firsts:
        wide = [vectors[item].astype(float) for item in items if vectors[item].any()]
        apart = [1 - one @ two / np.linalg.norm(one) / np.linalg.norm(two) for one, two in combinations(wide, 2)]
        if apart:
            distances.append(np.mean(apart))
    if distances:
        found[f"diversity@{k}"] = float(np.mean(distances))
    return found


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_same_as_by_loops_in_any_chunks(data: st.DataObject) -> None:
    items = data.draw(st.integers(2, 9))
    eligible = sorted(data.draw(st.sets(st.integers(0, items - 1), min_size=1)))
    lists = data.draw(st.lists(st.lists(st.sampled_from(eligible), unique=True, max_size=5), min_size=1, max_size=8))
    users = len(lists) + data.draw(st.integers(0, 3))
    counts = data.draw(st.lists(st.integers(0, users), min_size=items, max_size=items))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    vectors = rng.integers(-1, 2, (items, 3)).astype(np.float32)
    rows = np.full((len(lists), 5), -1)
    for user, mine in enumerate(lists):
        rows[user, : len(mine)] = mine
    made = ListMetrics((1, 3, 5), np.array(eligible), np.array(counts), users, vectors)
    cut = data.draw(st.integers(0, len(lists)))
    made.add(rows[:cut])
    made.add(rows[cut:])
    expected = {
        name: value for k in (1, 3, 5) for name, value in by_loops(lists, k, eligible, counts, users, vectors).items()
    }
    assert made.result() == pytest.approx(expected, abs=1e-6)  # directions are in float32


def test_gini_of_the_extremes() -> None:
    assert gini(np.array([3, 3, 3, 3])) == pytest.approx(0.0)
    assert gini(np.array([0, 0, 0, 8])) == pytest.approx(3 / 4)


def test_nothing_is_said_of_variety_without_vectors() -> None:
    made = ListMetrics((2,), np.arange(3), np.array([1, 2, 0]), 2, None)
    made.add(np.array([[0, 1], [2, -1]]))
    assert made.result() == pytest.approx(
        {"coverage@2": 1.0, "gini@2": 0.0, "popularity@2": (0.75 + 0.0) / 2, "novelty@2": (0.5 + 1.0) / 2}
    )
