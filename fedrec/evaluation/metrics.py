"""Ranking metrics of one held-out item per user, exact under ties, in bounded memory.

Ties take their expectation: where t other candidates score exactly as the positive does and g score higher, the
positive stands at each of the positions g + 1 .. g + 1 + t with probability 1 / (t + 1). A scorer that knows nothing
therefore gets HR@k = k / candidates, wherever the positive happens to stand.

Scores are compared as float32. Equal items do not always get equal scores: the product of a user vector with a
table sums in another order at the table's edges, and for one user than for many, so the last bit differs. A caller who
multiplies in float64 gets that bit rounded away here, and with it ranks that do not depend on block or cohort.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedrec.core.errors import FedrecError
from fedrec.core.rng import derive
from fedrec.data.negatives import NegativeSampler, sorted_distinct


class RankCounts(NamedTuple):
    """Where the positive stands among its candidates; int64 [users] each.

    Attributes:
        greater: Candidates that score higher than the positive.
        ties: *Other* candidates that score exactly as the positive.
        candidates: All candidates, the positive included.
    """

    greater: Tensor
    ties: Tensor
    candidates: Tensor


def check_scores(scores: Tensor) -> None:
    """Raise FedrecError unless every score is finite: a model that diverged must never get a rank without a word."""
    if scores.numel() and not torch.isfinite(torch.stack(torch.aminmax(scores))).all():
        bad = int((~torch.isfinite(scores)).sum())
        raise FedrecError(
            f"{bad} of {scores.numel()} scores are not finite (NaN or infinite): the model has diverged, lower the "
            "learning rate; items that are no candidates are named by `columns` and `excluded`, never by a score"
        )


def _count_in_numpy(scores: Tensor, threshold: Tensor, *pairs: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
    """What `_count` needs from the scores; ten times faster on a processor than torch's sum of a bool tensor."""
    values, limit = scores.numpy(), threshold.numpy()
    above, equal = np.count_nonzero(values > limit, axis=1), np.count_nonzero(values == limit, axis=1)
    return above, equal, values[pairs], limit[pairs[0], 0]


def _count_in_torch(scores: Tensor, threshold: Tensor, *pairs: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
    """The same on an accelerator: only counts, and the scores of the pairs, leave it."""
    owners, places = (torch.from_numpy(side).to(scores.device) for side in pairs)
    found = ((scores > threshold).sum(1), (scores == threshold).sum(1), scores[owners, places], threshold[owners, 0])
    return tuple(part.cpu().numpy() for part in found)


def _count(
    scores: Tensor, threshold: Tensor, owners: NDArray[np.int64], places: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many scores of each row [users] are above its threshold, how many equal it; the pairs given do not count."""
    count = _count_in_numpy if scores.device.type == "cpu" else _count_in_torch
    above, equal, removed, limits = count(scores, threshold, owners, places)
    above_removed = np.bincount(owners[removed > limits], minlength=len(scores))
    equal_removed = np.bincount(owners[removed == limits], minlength=len(scores))
    return above - above_removed, equal - equal_removed


class RankCounter:
    """Counts ranks from blocks of item columns, so that no [users, items] matrix ever exists.

    Args:
        positive: int64 [users], catalogue row of each user's held-out item.
        positive_scores: float [users], its scores, from the same function that scores the blocks.
        offsets: int64 [users + 1]. User u's earlier items are `excluded[offsets[u]:offsets[u + 1]]`.
        excluded: int64 [earlier items], catalogue rows that are no candidates, in any order, repeated or not. The
            positive is a candidate even if it stands here.

    Raises:
        FedrecError: a score is not finite.
        ValueError: shapes do not fit each other.
    """

    def __init__(self, positive: Tensor, positive_scores: Tensor, offsets: Tensor, excluded: Tensor) -> None:
        users = len(positive)
        if positive_scores.shape != (users,) or offsets.shape != (users + 1,):
            raise ValueError(
                f"{users} positives need as many scores and {users + 1} offsets, "
                f"got {tuple(positive_scores.shape)} and {tuple(offsets.shape)}"
            )
        self._threshold = positive_scores.detach().float()[:, None]
        check_scores(self._threshold)
        # Pairs (user, row) that never count: earlier items, and the positive against itself. Each once, and in the
        # order of the rows, so that a block of columns meets one stretch of them. This bookkeeping stays in numpy:
        # many small steps, which torch would spread over threads that may be busy elsewhere.
        known, own = excluded[int(offsets[0]) : int(offsets[-1])].cpu().numpy(), positive.cpu().numpy()
        everyone = np.arange(users)
        owners = np.concatenate([np.repeat(everyone, np.diff(offsets.cpu().numpy())), everyone])
        pairs = sorted_distinct(np.concatenate([known, own]).astype(np.int64) * max(users, 1) + owners)
        self._rows, self._owners = pairs // max(users, 1), pairs % max(users, 1)
        self._last = -1
        self._greater = np.zeros(users, dtype=np.int64)
        self._ties = np.zeros(users, dtype=np.int64)
        self._candidates = np.ones(users, dtype=np.int64)

    def add(self, scores: Tensor, columns: Tensor) -> None:
        """Count one block.

        Args:
            scores: float [users, block], finite in every place.
            columns: int64 [block], the eligible catalogue rows that the columns score: strictly ascending, and all
                past those of the block before, so that no candidate counts twice.

        Raises:
            FedrecError: a score is not finite.
            ValueError: shapes or columns are not as described.
        """
        if scores.shape != (len(self._greater), len(columns)):
            raise ValueError(f"{len(self._greater)} users x {len(columns)} columns have scores {tuple(scores.shape)}")
        if not len(columns):
            return
        rows = columns.cpu().numpy()
        if rows[0] <= self._last or (rows[1:] <= rows[:-1]).any():
            raise ValueError("columns must be in strictly ascending order, within a block and from block to block")
        self._last = int(rows[-1])
        compared = scores.detach().float()
        check_scores(compared)
        met = slice(*np.searchsorted(self._rows, [rows[0], rows[-1] + 1]))
        places = np.searchsorted(rows, self._rows[met])
        here = rows[places] == self._rows[met]
        owners, places = self._owners[met][here], places[here]
        greater, ties = _count(compared, self._threshold, owners, places)
        self._greater += greater
        self._ties += ties
        self._candidates += len(rows) - np.bincount(owners, minlength=len(self._greater))

    def counts(self) -> RankCounts:
        """The counts over all blocks so far, in the memory of the processor wherever the scores were."""
        counted = (self._greater, self._ties, self._candidates)
        return RankCounts(*(torch.from_numpy(values.copy()) for values in counted))


def sampled_rank_counts(positive_scores: Tensor, negative_scores: Tensor, valid: Tensor) -> RankCounts:
    """Ranks among sampled negatives: scores [users] and [users, n], `valid` bool [users, n] of `sampled_negatives`.

    Raises:
        FedrecError: a score is not finite, valid or not.
    """
    threshold, compared = positive_scores.detach().float()[:, None], negative_scores.detach().float()
    check_scores(threshold)
    check_scores(compared)
    valid = valid.to(compared.device)
    above, equal = (compared > threshold) & valid, (compared == threshold) & valid
    return RankCounts(above.sum(1).cpu(), equal.sum(1).cpu(), valid.sum(1).cpu() + 1)


def with_positive(
    offsets: NDArray[np.int64], excluded: NDArray[np.integer[Any]], positive: NDArray[np.integer[Any]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Offsets and rows (int64) of what each user knows at a ranking: its earlier items, then the positive."""
    known = np.asarray(excluded[offsets[0] : offsets[-1]], dtype=np.int64)
    offsets = offsets - offsets[0]
    return offsets + np.arange(len(offsets)), np.insert(known, offsets[1:], positive)


def sampled_negatives(
    seed: int,
    keys: NDArray[np.uint64],
    n: int,
    sampler: NegativeSampler,
    positive: NDArray[np.integer[Any]],
    offsets: NDArray[np.int64],
    excluded: NDArray[np.integer[Any]],
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Draw n different negatives for each user, uniform over the eligible items less earlier ones and the positive.

    Drawn without replacement; a user with fewer candidates than n gets all of them. A function of seed, user key, n and
    the user's own items: model and baselines, chunks and nodes, all rank among the same negatives.

    Args:
        seed: Root of the draws.
        keys: uint64 [users], the users' stable keys.
        n: Negatives for each user.
        sampler: Holds the eligible items.
        positive: [users], catalogue row of the held-out item.
        offsets: int64 [users + 1]. User u's earlier items are `excluded[offsets[u]:offsets[u + 1]]`.
        excluded: [earlier items], catalogue rows.

    Returns:
        Items int64 [users, n] and `valid` bool [users, n]. Places that are not valid hold the positive, a row that can
        be scored like any other and that `sampled_rank_counts` does not count.
    """
    grown, known = with_positive(offsets, excluded, positive)
    items, valid = sampler.unknown(grown, known).distinct(derive(seed, "sampled-ranking"), keys, n)
    return np.where(valid, items, np.asarray(positive, dtype=np.int64)[:, None]), valid


def ranking_metrics(counts: RankCounts, ks: Sequence[int], prefix: str = "") -> dict[str, Tensor]:
    """Each user's metrics, as expectations over random orders of the ties: float64 [users] each.

    `hr@k`: the positive is among the first k. `recall@k`: share of the relevant items among the first k, the same
    number since there is one. `ndcg@k`: 1 / log2(rank + 1) when the rank is within k, else 0 (the ideal is 1). `mrr`:
    1 / rank, not cut off.

    Args:
        counts: Where each positive stands.
        ks: The cut-offs, each one or more.
        prefix: Before every name, such as `sampled100/`.

    Raises:
        ValueError: a cut-off is below one, or counts contradict each other.
    """
    if any(k < 1 for k in ks):
        raise ValueError(f"cut-offs must be one or more, got {list(ks)}")
    before, ties = counts.greater, counts.ties
    if bool(((before < 0) | (ties < 0) | (before + ties >= counts.candidates)).any()):
        raise ValueError("a positive cannot stand past its own candidates: the counts contradict each other")
    last = before + ties + 1
    share = 1.0 / (ties + 1).double()
    # Not up to the largest cut-off, which is whatever the server says: nobody stands further back than the last.
    top = min(max(ks, default=0), int(last.max()) if len(last) else 0)
    positions = torch.arange(1, top + 1, dtype=torch.float64, device=before.device)
    gain = torch.cat([positions.new_zeros(1), torch.cumsum(1.0 / torch.log2(positions + 1), 0)])
    metrics: dict[str, Tensor] = {}
    for k in ks:
        from_rank, to_rank = before.clamp(max=k), last.clamp(max=k)
        hits = (to_rank - from_rank).double() * share
        metrics[f"{prefix}hr@{k}"] = hits
        metrics[f"{prefix}recall@{k}"] = hits.clone()
        metrics[f"{prefix}ndcg@{k}"] = (gain[to_rank] - gain[from_rank]) * share
    # 1/(g+1) + ... + 1/(g+1+t), by the digamma function: no table as long as the catalogue.
    harmonic = torch.special.digamma((last + 1).double()) - torch.special.digamma((before + 1).double())
    metrics[f"{prefix}mrr"] = torch.where(ties == 0, 1.0 / last.double(), harmonic * share)
    return metrics


def metric_sums(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """Sums over users, and their number as `users`: what a node may tell, never a user's own result."""
    sums = {name: float(values.sum(dtype=torch.float64)) for name, values in metrics.items()}
    return {"users": float(max((len(values) for values in metrics.values()), default=0)), **sums}


def add_sums(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The sums of several groups of users as one, added in the order given.

    Raises:
        ValueError: the groups have not the same metrics.
    """
    total: dict[str, float] = {}
    for part in parts:
        if total and part.keys() != total.keys():
            raise ValueError(f"groups differ in their metrics: {sorted(part.keys() ^ total.keys())}")
        total = {name: total.get(name, 0.0) + value for name, value in part.items()}
    return total


def mean_metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Means over users from the sums of `metric_sums`.

    Raises:
        FedrecError: there is no user to take a mean over.
    """
    users = sums.get("users", 0.0)
    if users < 1:
        raise FedrecError(
            "no user was evaluated (who has an item held out, and others before it), so there are no metrics"
        )
    return {name: value / users for name, value in sums.items() if name != "users"}
