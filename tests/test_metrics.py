"""Ranking metrics: by hand, by enumeration of every order of the ties, and against scikit-learn."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score
from torch import Tensor

import fedrec.evaluation.metrics
from fedrec.core.errors import FedrecError
from fedrec.data.negatives import NegativeSampler
from fedrec.evaluation.metrics import (
    RankCounter,
    RankCounts,
    add_sums,
    mean_metrics,
    metric_sums,
    ranking_metrics,
    sampled_negatives,
    sampled_rank_counts,
)

NOTHING = torch.zeros(0, dtype=torch.int64)


def no_history(users: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(users + 1, dtype=torch.int64), NOTHING


def ragged(histories: list[list[int]]) -> tuple[Tensor, Tensor]:
    offsets = torch.tensor([0, *itertools.accumulate(len(history) for history in histories)])
    return offsets, torch.tensor([item for history in histories for item in history], dtype=torch.int64)


def counts_of(greater: int, ties: int, candidates: int) -> RankCounts:
    return RankCounts(torch.tensor([greater]), torch.tensor([ties]), torch.tensor([candidates]))


def rank_counts(
    scores: Tensor, positive: Tensor, offsets: Tensor, excluded: Tensor, columns: Tensor | None = None
) -> RankCounts:
    """Counts of users whose scores of all eligible items are at hand, in one block.

    `columns`: the catalogue rows of the columns, ascending; column j is row j when not given.
    """
    known = torch.arange(scores.shape[1], device=scores.device) if columns is None else columns
    if len(positive) and not len(known):
        raise ValueError("there are no columns to rank a positive among")
    positive = positive.to(known.device)
    place = torch.searchsorted(known, positive).clamp(max=max(len(known) - 1, 0))
    if len(positive) and bool((known[place] != positive).any()):
        raise ValueError("a positive is not among the columns, so it has no score: use RankCounter, score it apart")
    counter = RankCounter(positive, scores.gather(1, place.to(scores.device)[:, None])[:, 0], offsets, excluded)
    counter.add(scores, known)
    return counter.counts()


def by_enumeration(scores: list[float], positive: int, k: int) -> dict[str, float]:
    """Means over every order of the candidates that agrees with the scores."""
    orders = [
        order
        for order in itertools.permutations(range(len(scores)))
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]
    ranks = [order.index(positive) + 1 for order in orders]
    return {
        f"hr@{k}": sum(rank <= k for rank in ranks) / len(ranks),
        f"recall@{k}": sum(rank <= k for rank in ranks) / len(ranks),
        f"ndcg@{k}": sum(1 / math.log2(rank + 1) for rank in ranks if rank <= k) / len(ranks),
        "mrr": sum(1 / rank for rank in ranks) / len(ranks),
    }


def test_ranks_by_hand() -> None:
    scores = torch.tensor([[5.0, 4.0, 3.0, 4.0, 1.0, 9.0], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    offsets, excluded = ragged([[5, 5], [0, 2]])  # the best item is known, and named twice
    counts = rank_counts(scores, torch.tensor([3, 2]), offsets, excluded)  # a known positive is a candidate
    assert counts.greater.tolist() == [1, 0]
    assert counts.ties.tolist() == [1, 4]
    assert counts.candidates.tolist() == [5, 5]


def test_metrics_by_hand() -> None:
    metrics = ranking_metrics(counts_of(2, 0, 9), [2, 3, 10])
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(
        {"hr@2": 0, "recall@2": 0, "ndcg@2": 0, "hr@3": 1, "recall@3": 1, "ndcg@3": 0.5}
        | {"hr@10": 1, "recall@10": 1, "ndcg@10": 0.5, "mrr": 1 / 3}
    )
    tied = ranking_metrics(counts_of(0, 2, 9), [2])  # at rank 1, 2 or 3, each one time in three
    assert float(tied["hr@2"]) == pytest.approx(2 / 3)
    assert float(tied["ndcg@2"]) == pytest.approx((1 + 1 / math.log2(3)) / 3)
    assert float(tied["mrr"]) == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)


def test_names_carry_the_protocol() -> None:
    names = ranking_metrics(counts_of(0, 0, 1), [10], "sampled100/")
    assert list(names) == ["sampled100/hr@10", "sampled100/recall@10", "sampled100/ndcg@10", "sampled100/mrr"]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.data())
def test_ties_take_the_mean_over_all_their_orders(levels: list[int], data: st.DataObject) -> None:
    positive, k = data.draw(st.integers(0, len(levels) - 1)), data.draw(st.integers(1, 8))
    scores = [float(level) for level in levels]
    counts = rank_counts(torch.tensor([scores]), torch.tensor([positive]), *no_history(1))
    metrics = {name: float(value) for name, value in ranking_metrics(counts, [k]).items()}
    assert metrics == pytest.approx(by_enumeration(scores, positive, k), abs=1e-12)


@given(st.lists(st.integers(0, 5), min_size=2, max_size=40), st.data())
def test_ndcg_agrees_with_scikit_learn(levels: list[int], data: st.DataObject) -> None:
    positive, k = data.draw(st.integers(0, len(levels) - 1)), data.draw(st.integers(1, 50))
    scores, relevance = np.array([levels], dtype=float), np.zeros((1, len(levels)))
    relevance[0, positive] = 1
    counts = rank_counts(torch.from_numpy(scores), torch.tensor([positive]), *no_history(1))
    expected = ndcg_score(relevance, scores, k=k, ignore_ties=False)
    assert float(ranking_metrics(counts, [k])[f"ndcg@{k}"]) == pytest.approx(expected)


@pytest.mark.parametrize("k", [1, 5, 20, 100])
def test_a_constant_scorer_gets_its_share_wherever_the_positive_stands(k: int) -> None:
    users = items = 23
    histories = [[(user + 1) % items, (user + 9) % items] for user in range(users)]
    counts = rank_counts(torch.full((users, items), 0.7), torch.arange(users), *ragged(histories))
    metrics = ranking_metrics(counts, [k])
    assert metrics[f"hr@{k}"].tolist() == pytest.approx([min(k, 21) / 21] * users)
    assert metrics["mrr"].tolist() == pytest.approx([sum(1 / rank for rank in range(1, 22)) / 21] * users)


def test_equal_items_tie_whatever_the_product_does_to_their_last_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(32, generator=generator, dtype=torch.float64)
    table, queries = vector.repeat(3706, 1), torch.randn(16, 32, generator=generator, dtype=torch.float64)
    for cohort in (queries, queries[:1]):
        counts = rank_counts(cohort @ table.T, torch.arange(len(cohort)), *no_history(len(cohort)))
        assert counts.ties.tolist() == [3705] * len(cohort)


@st.composite
def rankings(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, list[list[int]]]:
    """Scores full of ties over some eligible columns, positives among them, and histories of any catalogue rows."""
    columns = sorted(draw(st.sets(st.integers(0, 30), min_size=1, max_size=15)))
    users = draw(st.integers(1, 4))
    level = st.integers(-2, 2).map(float)
    row = st.lists(level, min_size=len(columns), max_size=len(columns))
    scores = draw(st.lists(row, min_size=users, max_size=users))
    positive = draw(st.lists(st.sampled_from(columns), min_size=users, max_size=users))
    histories = draw(st.lists(st.lists(st.integers(0, 35), max_size=12), min_size=users, max_size=users))
    return torch.tensor(scores), torch.tensor(columns), torch.tensor(positive), histories


@given(rankings(), st.data())
def test_blocks_of_items_count_as_the_whole_and_as_a_slow_look(
    ranking: tuple[Tensor, Tensor, Tensor, list[list[int]]], data: st.DataObject
) -> None:
    scores, columns, positive, histories = ranking
    whole = rank_counts(scores, positive, *ragged(histories), columns)
    place = torch.searchsorted(columns, positive)
    counter = RankCounter(positive, scores.gather(1, place[:, None])[:, 0], *ragged(histories))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(columns)), max_size=4)))
    for start, end in itertools.pairwise([0, *cuts, len(columns)]):
        counter.add(scores[:, start:end], columns[start:end])
    for streamed, counted in zip(counter.counts(), whole, strict=True):
        assert streamed.tolist() == counted.tolist()
    for user, history in enumerate(histories):
        own = scores[user, place[user]]
        others = [
            scores[user, column]
            for column, row in enumerate(columns.tolist())
            if row not in history and row != positive[user]
        ]
        assert whole.greater[user] == sum(bool(score > own) for score in others)
        assert whole.ties[user] == sum(bool(score == own) for score in others)
        assert whole.candidates[user] == len(others) + 1


@given(rankings())
def test_the_accelerator_counts_as_the_processor(ranking: tuple[Tensor, Tensor, Tensor, list[list[int]]]) -> None:
    scores, columns, positive, histories = ranking
    on_processor = rank_counts(scores, positive, *ragged(histories), columns)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fedrec.evaluation.metrics, "_count_in_numpy", fedrec.evaluation.metrics._count_in_torch)
        for one, other in zip(rank_counts(scores, positive, *ragged(histories), columns), on_processor, strict=True):
            assert one.tolist() == other.tolist()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1, 3])
def test_scores_of_a_diverged_model_get_no_rank(bad: float, place: int) -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    scores[0, place] = bad
    with pytest.raises(FedrecError, match="diverged"):
        rank_counts(scores, torch.tensor([1]), *ragged([[3]]))  # also in the column that is no candidate
    with pytest.raises(FedrecError, match="diverged"):
        sampled_rank_counts(scores[:, 0], scores[:, 1:], torch.ones(1, 3, dtype=torch.bool))


def test_misuse_is_an_error() -> None:
    scores = torch.zeros(1, 3)
    with pytest.raises(ValueError, match="not among the columns"):
        rank_counts(scores, torch.tensor([1]), *no_history(1), torch.tensor([0, 2, 4]))
    with pytest.raises(ValueError, match="no columns"):
        rank_counts(torch.zeros(1, 0), torch.tensor([1]), *no_history(1))
    counter = RankCounter(torch.tensor([1]), torch.zeros(1), *no_history(1))
    counter.add(scores, torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="ascending"):
        counter.add(scores, torch.tensor([2, 3, 4]))
    with pytest.raises(ValueError, match="columns have scores"):
        counter.add(scores, torch.tensor([7, 8]))
    with pytest.raises(ValueError, match="offsets"):
        RankCounter(torch.tensor([1]), torch.zeros(1), *no_history(2))
    with pytest.raises(ValueError, match="cut-offs"):
        ranking_metrics(counts_of(0, 0, 1), [5, 0])
    with pytest.raises(ValueError, match="contradict"):
        ranking_metrics(counts_of(3, 1, 4), [1])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_gets_no_rank(value: float) -> None:
    good, bad = torch.tensor([0.5]), torch.tensor([value])
    with pytest.raises(FedrecError, match="not finite"):
        RankCounter(torch.tensor([1]), bad, *no_history(1))
    for positive, others in ((bad, good), (good, bad)):
        with pytest.raises(FedrecError, match="not finite"):
            sampled_rank_counts(positive, others[None], torch.tensor([[True]]))


def test_ranks_of_a_large_catalogue_are_exact() -> None:
    metrics = ranking_metrics(counts_of(999_998, 0, 1_000_000), [10])
    assert float(metrics["mrr"]) == 1 / 999_999
    constant = ranking_metrics(counts_of(0, 999_999, 1_000_000), [10])
    assert float(constant["hr@10"]) == pytest.approx(1e-5)
    assert float(constant["mrr"]) == pytest.approx(math.fsum(1 / rank for rank in range(1, 1_000_001)) / 1e6, rel=1e-12)


def test_sampled_negatives_leave_out_what_the_user_knows_and_mark_what_is_missing() -> None:
    offsets, history = np.array([0, 2, 3]), np.array([0, 1, 5])
    positive, keys = np.array([2, 0]), np.array([7, 8], dtype=np.uint64)
    sampler = NegativeSampler(np.arange(6))
    items, valid = sampled_negatives(1, keys, 4, sampler, positive, offsets, history)
    assert sorted(items[0, valid[0]].tolist()) == [3, 4, 5]
    assert sorted(items[1, valid[1]].tolist()) == [1, 2, 3, 4]
    assert items[0, ~valid[0]].tolist() == [2]  # a row that can be scored
    alone, _ = sampled_negatives(1, keys[1:], 4, sampler, positive[1:], offsets[1:], history)
    assert np.array_equal(alone[0], items[1])


def test_places_that_are_not_valid_do_not_count() -> None:
    valid = torch.tensor([[True, True, False, True, True]])
    counts = sampled_rank_counts(torch.tensor([1.0]), torch.tensor([[2.0, 1.0, 1.0, 3.0, 1.0]]), valid)
    assert [int(value) for value in counts] == [2, 2, 5]


def test_a_constant_scorer_gets_its_share_of_sampled_candidates() -> None:
    valid = torch.ones(5, 100, dtype=torch.bool)
    counts = sampled_rank_counts(torch.zeros(5), torch.zeros(5, 100), valid)
    assert ranking_metrics(counts, [10])["hr@10"].tolist() == pytest.approx([10 / 101] * 5)


def test_sums_of_groups_are_the_sum_of_all() -> None:
    counts = RankCounts(torch.tensor([0, 3, 9]), torch.tensor([0, 1, 0]), torch.tensor([20, 20, 20]))
    metrics = ranking_metrics(counts, [5])
    parts = [metric_sums({name: values[cut] for name, values in metrics.items()}) for cut in (slice(1), slice(1, 3))]
    assert add_sums(parts) == pytest.approx(metric_sums(metrics))
    assert mean_metrics(add_sums(parts))["hr@5"] == pytest.approx(2 / 3)
    assert "users" not in mean_metrics(add_sums(parts))
    with pytest.raises(ValueError, match="differ"):
        add_sums([{"users": 1.0}, {"users": 1.0, "mrr": 0.5}])
    with pytest.raises(FedrecError, match="no user"):
        mean_metrics(add_sums([]))


def test_a_cut_off_past_all_candidates_costs_nothing() -> None:
    """It may come from a server, and a table as long would be of terabytes."""
    counts = RankCounts(torch.tensor([0, 4]), torch.tensor([1, 2]), torch.tensor([9, 9]))
    far, near = ranking_metrics(counts, [10**12]), ranking_metrics(counts, [9])
    for name in ("hr", "ndcg", "recall"):
        assert torch.equal(far[f"{name}@{10**12}"], near[f"{name}@9"])
    assert ranking_metrics(RankCounts(*(torch.zeros(0, dtype=torch.int64),) * 3), [10**12])["mrr"].shape == (0,)
