"""What a model has to beat: random, popularity, and the similarity of item texts.

Baselines rank the same held-out items among the same candidates as the model, and know the same history: at test a
user's history is train and validation, for everyone alike.

| name | score of an item |
|---|---|
| `random` | a random order, in closed form: HR@k = k / candidates |
| `popularity` | its number of interactions in the histories of all users |
| `content_mean` | cosine of its text vector to the mean direction of the user's history |
| `content_last` | cosine of its text vector to that of the last item of the user's history |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding_bag
from typing_extensions import override

from fedrec.core.errors import DataError
from fedrec.data.negatives import NegativeSampler, sorted_distinct
from fedrec.data.split import Histories, evaluated, histories, history_end, targets
from fedrec.data.types import Interactions
from fedrec.evaluation.compared_by import curve_metric
from fedrec.evaluation.metrics import (
    RankCounter,
    RankCounts,
    add_sums,
    mean_metrics,
    metric_sums,
    ranking_metrics,
    sampled_negatives,
    sampled_rank_counts,
    with_positive,
)

if TYPE_CHECKING:
    from scipy.sparse import csr_array

USERS_AT_ONCE = 256
ROWS_AT_ONCE = 8192

NAMES = {
    "random": "random",
    "popularity": "popularity",
    "content_mean": "text, mean of the history",
    "content_last": "text, last item",
}
"""What people read of a baseline."""


@dataclass(frozen=True)
class SampledRanking:
    """The sampled protocol: the held-out item among negatives drawn for (seed, user key), the model's own.

    Attributes:
        n: Negatives for each user.
        seed: Root of the draws.
        keys: uint64 [users of the data set], the users' stable keys.
    """

    n: int
    seed: int
    keys: NDArray[np.uint64]


class _Chunk(NamedTuple):
    """Some users to rank, each with a history of one item or more."""

    positive: NDArray[np.int64]
    history: Histories
    negatives: NDArray[np.int64]
    valid: Tensor

    @property
    def known(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Offsets and rows of what is never counted against the positive: the history, and the positive itself."""
        return with_positive(self.history.offsets, self.history.items, self.positive)


class BaselineResults(NamedTuple):
    """What baselines come to.

    Attributes:
        means: Of every metric, over the ranked users, by baseline.
        users: int64 [ranked], the positions of the ranked users in the data set.
        each: By baseline, each of these users' value, float64 [ranked], of the metric that models are compared by.
    """

    means: dict[str, dict[str, float]]
    users: NDArray[np.int64]
    each: dict[str, NDArray[np.float64]]


def baseline_results(
    interactions: Interactions,
    eligible: NDArray[np.integer[Any]],
    item_vectors: NDArray[np.float32] | csr_array | None,
    split: Literal["validation", "test"],
    ks: Sequence[int],
    sampled: SampledRanking | None = None,
    users: NDArray[np.int64] | None = None,
) -> BaselineResults:
    """Metrics of every baseline, over the users who have a held-out item (three interactions or more).

    Memory is bounded by `USERS_AT_ONCE` users and `ROWS_AT_ONCE` rows at a time, beside the arguments.

    Args:
        interactions: Everybody's interactions.
        eligible: [E], the catalogue rows that are candidates, strictly ascending.
        item_vectors: float32 [catalogue, w], one text vector an item (zeros where there is no text), dense or in sparse
            rows. None where the catalogue has no texts: then there are no content baselines.
        split: `test` holds the last item out, `validation` the one before (and never shows the last).
        ks: Cut-offs of the metrics.
        sampled: Ask for the sampled protocol too; its metrics are named `sampled<n>/...`.
        users: Positions of the users to rank, where the model is not evaluated on all. Popularity counts all anyway.

    Returns:
        What `ranking_metrics` gives, in the mean, `{"popularity": {"hr@10": .., "mrr": .., ..}, ..}`, and of each user.

    Raises:
        DataError: vectors do not cover the catalogue rows in use, or are not finite.
        FedrecError: no user has a held-out item.
    """
    sampler = NegativeSampler(eligible)
    popularity = _Popularity(interactions, sampler, split)
    texts = None if item_vectors is None else _texts(item_vectors, sampler, len(popularity.scores))
    ranked = np.arange(interactions.users) if users is None else users
    ranked = ranked[evaluated(interactions, ranked, of=split)]
    sums: dict[str, list[dict[str, float]]] = {name: [] for name in ("random", "popularity")}
    each: dict[str, list[NDArray[np.float64]]] = {}
    for start in range(0, len(ranked), USERS_AT_ONCE):
        chunk = _chunk(interactions, ranked[start : start + USERS_AT_ONCE], split, sampler, sampled)
        counts = {"random": _random(chunk, sampler), "popularity": popularity.ranks(chunk)}
        if texts is not None:
            counts["content_mean"] = texts.ranks(chunk, texts.mean_of(chunk.history))
            counts["content_last"] = texts.ranks(chunk, texts.unit(chunk.history.items[chunk.history.offsets[1:] - 1]))
        for name, (full, among) in counts.items():
            metrics = ranking_metrics(full, ks)
            if sampled is not None:
                metrics |= ranking_metrics(among, ks, f"sampled{sampled.n}/")
            sums.setdefault(name, []).append(metric_sums(metrics))
            each.setdefault(name, []).append(metrics[curve_metric(metrics)].double().numpy())
    means = {name: mean_metrics(add_sums(parts)) for name, parts in sums.items()}
    return BaselineResults(means, ranked, {name: np.concatenate(parts) for name, parts in each.items()})


def _chunk(
    interactions: Interactions,
    users: NDArray[np.int64],
    split: Literal["validation", "test"],
    sampler: NegativeSampler,
    sampled: SampledRanking | None,
) -> _Chunk:
    history = histories(interactions, split, users)
    positive = targets(interactions, split, users).astype(np.int64)
    if sampled is None:
        nothing = np.empty((len(users), 0), dtype=np.int64)
        return _Chunk(positive, history, nothing, torch.from_numpy(nothing).bool())
    negatives, valid = sampled_negatives(
        sampled.seed, sampled.keys[users], sampled.n, sampler, positive, history.offsets, history.items
    )
    return _Chunk(positive, history, negatives, torch.from_numpy(valid))


def _random(chunk: _Chunk, sampler: NegativeSampler) -> tuple[RankCounts, RankCounts]:
    """All candidates tie: what any scorer gets that knows nothing, in expectation."""
    others = torch.from_numpy(sampler.unknown(*chunk.known).counts)
    among = chunk.valid.sum(1)
    return (
        RankCounts(torch.zeros_like(others), others, others + 1),
        RankCounts(torch.zeros_like(among), among, among + 1),
    )


class _Popularity:
    """Popularity scores every item the same for all users: its ranks are searches in one sorted list."""

    def __init__(self, interactions: Interactions, sampler: NegativeSampler, split: Literal["validation", "test"]):
        items, rows = interactions.items, int(sampler.eligible[-1]) + 1
        counts = np.zeros(rows, dtype=np.int64)
        for start in range(0, len(items), 2**20):  # in pieces: `bincount` widens what it counts
            found = np.bincount(items[start : start + 2**20], minlength=len(counts))
            found[: len(counts)] += counts
            counts = found
        ends = history_end(interactions, split)
        lengths = interactions.offsets[1:] - ends  # what lies behind a history's end: the held-out item, and all after
        beyond = np.arange(lengths.sum()) + np.repeat(ends - (np.cumsum(lengths) - lengths), lengths)
        np.subtract.at(counts, items[beyond], 1)
        self.scores = counts
        self._sampler = sampler
        self._sorted = np.sort(counts[sampler.eligible])

    def ranks(self, chunk: _Chunk) -> tuple[RankCounts, RankCounts]:
        """Ranks among all candidates, and among the sampled ones."""
        limit = self.scores[chunk.positive]
        up_to = np.searchsorted(self._sorted, limit, side="right")
        ties = up_to - np.searchsorted(self._sorted, limit, side="left")
        # Off again: earlier items, and the positive itself. Each pair once, and only what was counted above.
        offsets, rows = chunk.known
        owners = np.repeat(np.arange(len(limit)), np.diff(offsets))
        owners, rows = np.divmod(sorted_distinct(owners * len(self.scores) + rows), len(self.scores))
        listed = self._sampler.contains(rows)
        owners, scores = owners[listed], self.scores[rows[listed]]

        def off(marked: NDArray[np.bool_]) -> NDArray[np.int64]:
            return np.bincount(owners[marked], minlength=len(limit))

        full = RankCounts(
            torch.from_numpy(len(self._sorted) - up_to - off(scores > limit[owners])),
            torch.from_numpy(ties - off(scores == limit[owners])),
            torch.from_numpy(len(self._sorted) - off(np.ones(len(owners), dtype=bool)) + 1),
        )
        negatives = torch.from_numpy(self.scores[chunk.negatives].astype(np.float64))
        return full, sampled_rank_counts(torch.from_numpy(limit.astype(np.float64)), negatives, chunk.valid)


def _texts(vectors: NDArray[np.float32] | csr_array, sampler: NegativeSampler, rows: int) -> _Texts:
    """Text vectors of either kind, checked."""
    if vectors.shape[0] < rows:
        raise DataError(f"{vectors.shape[0]} item vectors do not cover the {rows} catalogue rows in use")
    kind = _Texts if isinstance(vectors, np.ndarray) else _SparseTexts
    if isinstance(vectors, np.ndarray):
        squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    else:
        squares = np.asarray(vectors.astype(np.float64).power(2).sum(axis=1)).ravel()
    norms = np.sqrt(squares)
    if not np.isfinite(norms).all():
        raise DataError(f"{int((~np.isfinite(norms)).sum())} item vectors hold NaN or infinite numbers")
    scale = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)  # no text: cosine 0
    return kind(vectors, scale, sampler.eligible)


class _Texts:
    """Text vectors as directions. Products are in float64, so that equal texts tie in every block (see `metrics`)."""

    def __init__(self, vectors: Any, scale: NDArray[np.float64], eligible: NDArray[np.int64]):
        self._vectors = vectors
        self._scale = scale
        self._eligible = eligible

    def unit(self, rows: NDArray[np.integer[Any]]) -> Any:
        """Directions, float64 [..., w], of catalogue rows."""
        return torch.from_numpy(self._vectors[rows] * self._scale[rows][..., None])

    def mean_of(self, history: Histories) -> Any:
        """Sum of each history's directions, float64 [users, w]: only its own direction matters for a ranking."""
        total = torch.zeros(len(history), self._vectors.shape[1], dtype=torch.float64)
        for start in range(0, len(history.items), ROWS_AT_ONCE):
            rows = self.unit(history.items[start : start + ROWS_AT_ONCE])
            bags = torch.from_numpy(np.clip(history.offsets - start, 0, len(rows)))
            total += embedding_bag(torch.arange(len(rows)), rows, bags, mode="sum", include_last_offset=True)
        return total

    def score_own(self, queries: Any, rows: NDArray[np.int64]) -> Tensor:
        """Each user's query with the one row that is its own: float64 [users]."""
        return torch.einsum("uw,uw->u", self.unit(rows), queries)

    def score_all(self, queries: Any, rows: NDArray[np.int64]) -> Tensor:
        """Every query with every row: float64 [users, rows]."""
        scores: Tensor = queries @ self.unit(rows).T
        return scores

    def ranks(self, chunk: _Chunk, queries: Any) -> tuple[RankCounts, RankCounts]:
        """Ranks by the product with each user's query, among all candidates and among the sampled ones."""
        positive_scores = self.score_own(queries, chunk.positive)
        counter = RankCounter(
            torch.from_numpy(chunk.positive),
            positive_scores,
            torch.from_numpy(chunk.history.offsets),
            torch.from_numpy(chunk.history.items.astype(np.int64)),
        )
        sampled = torch.zeros(chunk.negatives.shape, dtype=torch.float64)
        for start in range(0, len(self._eligible), ROWS_AT_ONCE):
            rows = self._eligible[start : start + ROWS_AT_ONCE]
            scores = self.score_all(queries, rows)
            counter.add(scores, torch.from_numpy(rows))
            among = (rows[0] <= chunk.negatives) & (chunk.negatives <= rows[-1]) & chunk.valid.numpy()
            owners, places = np.nonzero(among)
            sampled[owners, places] = scores[owners, np.searchsorted(rows, chunk.negatives[owners, places])]
        return counter.counts(), sampled_rank_counts(positive_scores, sampled, chunk.valid)


class _SparseTexts(_Texts):
    """The same over sparse rows: bags of words, of which a text has few."""

    @override
    def unit(self, rows: NDArray[np.integer[Any]]) -> Any:
        return self._vectors[rows].astype(np.float64).multiply(self._scale[rows][:, None]).tocsr()

    @override
    def mean_of(self, history: Histories) -> Any:
        from scipy.sparse import csr_array

        ones = np.ones(len(history.items))
        items = self._vectors.shape[0]
        sums = csr_array((ones * self._scale[history.items], history.items, history.offsets), (len(history), items))
        return sums @ self._vectors.astype(np.float64)

    @override
    def score_own(self, queries: Any, rows: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(np.asarray(self.unit(rows).multiply(queries).sum(axis=1)).ravel())

    @override
    def score_all(self, queries: Any, rows: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy((queries @ self.unit(rows).T).toarray())
