"""Baselines: by hand, against a slow look at one user at a time, and without any trace of the held-out items."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.sparse import csr_array

import fedrec.evaluation.baselines
from fedrec.core.errors import DataError, FedrecError
from fedrec.data.negatives import NegativeSampler
from fedrec.data.types import Interactions
from fedrec.evaluation.baselines import SampledRanking, baseline_results
from fedrec.evaluation.compared_by import curve_metric
from fedrec.evaluation.metrics import sampled_negatives

Split = Literal["validation", "test"]
BACK: dict[Split, int] = {"validation": 2, "test": 1}


def baseline_metrics(*arguments: Any, **more: Any) -> dict[str, dict[str, float]]:
    """The means; what users have has the same mean."""
    found = baseline_results(*arguments, **more)
    for name, means in found.means.items():
        assert found.each[name].shape == found.users.shape
        assert found.each[name].mean() == pytest.approx(means[curve_metric(means)], abs=1e-12)
    return found.means


def interactions_of(histories: list[list[int]]) -> Interactions:
    offsets = np.concatenate(([0], np.cumsum([len(history) for history in histories]))).astype(np.int64)
    items = np.array([item for history in histories for item in history], dtype=np.int32)
    return Interactions([str(user) for user in range(len(histories))], offsets, items)


def slow_metrics(scores: NDArray[np.float64], positive: int, candidates: list[int], k: int) -> NDArray[np.float64]:
    """HR@k, NDCG@k and MRR of one user: the mean over the positions that the positive may take."""
    higher = sum(scores[item] > scores[positive] for item in candidates)
    equal = sum(scores[item] == scores[positive] for item in candidates)  # the positive is a candidate
    ranks = range(int(higher) + 1, int(higher + equal) + 1)
    parts = [(rank <= k, (rank <= k) / math.log2(rank + 1), 1 / rank) for rank in ranks]
    mean: NDArray[np.float64] = np.array(parts, dtype=np.float64).mean(axis=0)
    return mean


def slow_baselines(
    histories: list[list[int]],
    eligible: list[int],
    vectors: NDArray[np.float32],
    split: Split,
    k: int,
    negatives: dict[int, list[int]] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Means by baseline, one user at a time; among `negatives` by user where given."""
    known = {user: history[: -BACK[split]] if len(history) >= 3 else history for user, history in enumerate(histories)}
    popularity = np.zeros(len(vectors))
    for history in known.values():
        np.add.at(popularity, history, 1)
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    unit = np.divide(vectors, norms, out=np.zeros(vectors.shape), where=norms > 0)
    results: dict[str, list[NDArray[np.float64]]] = {}
    for user, history in enumerate(histories):
        if len(history) < 3:
            continue
        positive = history[-BACK[split]]
        candidates = [item for item in eligible if item not in known[user] and item != positive] + [positive]
        if negatives is not None:
            candidates = [*negatives[user], positive]
        scores = {
            "random": np.zeros(len(vectors)),
            "popularity": popularity,
            "content_mean": np.round(unit @ unit[known[user]].mean(axis=0), 9),
            "content_last": np.round(unit @ unit[known[user][-1]], 9),
        }
        for name, row in scores.items():
            results.setdefault(name, []).append(slow_metrics(row, positive, candidates, k))
    return {name: np.mean(rows, axis=0) for name, rows in results.items()}


@pytest.fixture
def histories() -> list[list[int]]:
    """40 users of a catalogue of 30 rows whose last five nobody rated; users with too few interactions among them."""
    rng = np.random.default_rng(1)
    sizes = [0, 1, 2, 3, 24, *rng.integers(3, 12, size=35)]
    return [rng.permutation(25)[:size].tolist() for size in sizes]


@pytest.fixture
def vectors() -> NDArray[np.float32]:
    """Text vectors of different lengths; rows 3 and 4 are equal, row 7 has no text."""
    made = np.random.default_rng(2).normal(size=(30, 6)).astype(np.float32)
    made *= np.arange(1, 31, dtype=np.float32)[:, None]
    made[4], made[7] = made[3], 0
    return made


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize(("users_at_once", "rows_at_once"), [(256, 8192), (3, 4), (1, 1)])
def test_they_equal_a_slow_look_in_chunks_of_any_size(
    histories: list[list[int]],
    vectors: NDArray[np.float32],
    split: Split,
    users_at_once: int,
    rows_at_once: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fedrec.evaluation.baselines, "USERS_AT_ONCE", users_at_once)
    monkeypatch.setattr(fedrec.evaluation.baselines, "ROWS_AT_ONCE", rows_at_once)
    interactions = interactions_of(histories)
    eligible, keys = np.unique(interactions.items), np.arange(50, 90, dtype=np.uint64)
    found = baseline_metrics(interactions, eligible, vectors, split, [5], SampledRanking(7, 3, keys))
    assert list(found) == ["random", "popularity", "content_mean", "content_last"]

    negatives = {}
    for user, history in enumerate(histories):
        if len(history) >= 3:
            known = np.array(history[: -BACK[split]])
            positive, offsets = np.array(history[-BACK[split]])[None], np.array([0, len(known)])
            sampler = NegativeSampler(eligible)
            drawn, valid = sampled_negatives(3, keys[user : user + 1], 7, sampler, positive, offsets, known)
            negatives[user] = drawn[valid].tolist()
    for prefix, among in (("", None), ("sampled7/", negatives)):
        slow = slow_baselines(histories, eligible.tolist(), vectors, split, 5, among)
        for name, expected in slow.items():
            got = [found[name][prefix + metric] for metric in ("hr@5", "ndcg@5", "mrr")]
            assert got == pytest.approx(expected.tolist(), abs=1e-9), (name, prefix)
            assert found[name][f"{prefix}recall@5"] == found[name][f"{prefix}hr@5"]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_sparse_vectors_give_what_dense_ones_give(
    histories: list[list[int]], vectors: NDArray[np.float32], split: Split
) -> None:
    interactions, eligible = interactions_of(histories), np.arange(len(vectors))
    sampled = SampledRanking(3, 7, np.arange(len(histories), dtype=np.uint64))
    dense = baseline_metrics(interactions, eligible, vectors, split, [1, 3], sampled)
    sparse = baseline_metrics(interactions, eligible, csr_array(vectors), split, [1, 3], sampled)
    for name, metrics in dense.items():
        assert sparse[name] == pytest.approx(metrics, abs=1e-12)


def test_by_hand() -> None:
    # At test: user 0 knows 0, 1 and holds out 2; user 1 knows 0, 3 and holds out 1; user 2 is too short and knows 2.
    interactions = interactions_of([[0, 1, 2], [0, 3, 1], [2]])
    vectors = np.array([[1, 0], [0, 2], [0, 3], [1, 0], [9, 0]], dtype=np.float32)
    found = baseline_metrics(interactions, np.arange(5), vectors, "test", [1])
    assert found["random"]["hr@1"] == pytest.approx(1 / 3)  # three candidates each
    # Counts 2, 1, 1, 1, 0. User 0: 2 ties with 3, before 4. User 1: 1 ties with 2, before 4.
    assert found["popularity"]["hr@1"] == pytest.approx(1 / 2)
    # User 0, last item 1: 2 points the same way, alone. User 1, last item 3: 4 is first, 1 and 2 tie behind it.
    assert found["content_last"]["mrr"] == pytest.approx((1 + (1 / 2 + 1 / 3) / 2) / 2)


def test_the_future_is_not_known() -> None:
    short, long = [[0, 1, 2, 3], [4, 5, 6]], [[0, 1, 2, 5], [4, 5, 3]]
    found = [baseline_metrics(interactions_of(h), np.arange(8), None, "validation", [3]) for h in (short, long)]
    assert found[0] == found[1]  # only the test items differ


def test_some_users_are_ranked_but_all_are_counted(histories: list[list[int]]) -> None:
    interactions = interactions_of(histories)
    eligible = np.unique(interactions.items)
    singles = [
        baseline_metrics(interactions, eligible, None, "test", [5], users=np.array([user])) for user in range(3, 40)
    ]
    whole = baseline_metrics(interactions, eligible, None, "test", [5])
    assert whole["popularity"]["mrr"] == pytest.approx(np.mean([one["popularity"]["mrr"] for one in singles]))
    assert list(whole) == ["random", "popularity"]


def test_an_item_that_is_not_eligible_is_no_candidate_unless_held_out() -> None:
    interactions = interactions_of([[0, 1, 9], [2, 0, 1]])
    found = baseline_metrics(interactions, np.arange(4), np.eye(10, dtype=np.float32), "test", [1])
    # User 0: 9 against 2, 3. User 1: 1 against 3.
    assert found["random"]["hr@1"] == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_what_is_missing_is_said() -> None:
    interactions = interactions_of([[0, 1, 2]])
    with pytest.raises(DataError, match="do not cover"):
        baseline_metrics(interactions, np.arange(3), np.ones((2, 4), np.float32), "test", [1])
    with pytest.raises(DataError, match="NaN"):
        baseline_metrics(interactions, np.arange(3), np.full((3, 4), np.nan, np.float32), "test", [1])
    with pytest.raises(FedrecError, match="no user"):
        baseline_metrics(interactions_of([[0, 1]]), np.arange(3), None, "test", [1])
