"""What lists of recommendations are like beside being right: how much of the catalogue, how popular, how various.

With U users, n_i of whom have item i in their history, and the first k items of every user's list:

| metric | what it is | source |
|---|---|---|
| `coverage@k` | share of the items that may be recommended which are in anybody's list | Ge et al., RecSys 2010 |
| `gini@k` | Gini coefficient of how often each of these items is in a list: 0 where all are as often | Fleder and Hosanagar, 2009 |
| `popularity@k` | mean of n_i / U over a list's items | Yin et al., VLDB 2012, there without U |
| `novelty@k` | mean of log2(U / n_i), the self-information; an item that nobody has counts as if one user had it | Zhou et al., PNAS 2010 |
| `diversity@k` | mean of 1 - cosine over the pairs of a list's items that have a vector | Ziegler et al., WWW 2005 |

The last three are means over a list, and then over the users whose list is long enough: one item, or two with vectors.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_NUMBERS_AT_ONCE = 2**23


class ListMetrics:
    """Adds up lists of users, some at a time: no more than theirs is in memory, and nobody's list is kept.

    Args:
        ks: Cut-offs, each one or more.
        eligible: int64 [items], catalogue rows that may be recommended.
        counts: int64 [catalogue], of how many users' histories each item is part.
        users: How many users there are, one or more.
        vectors: float [catalogue, w], a vector of each item that does not come from the model under judgement; zeros
            where there is none. None: nothing is said of diversity.
    """

    def __init__(
        self,
        ks: Sequence[int],
        eligible: NDArray[np.int64],
        counts: NDArray[np.int64],
        users: int,
        vectors: NDArray[np.float32] | None,
    ) -> None:
        self._ks = tuple(ks)
        self._eligible = eligible
        self._share = counts / users
        self._novelty = np.log2(users / np.maximum(counts, 1))
        self._unit = None if vectors is None else _directions(vectors)
        self._times = {k: np.zeros(len(counts), dtype=np.int64) for k in self._ks}
        self._sums = {(name, k): [0.0, 0] for name in ("popularity", "novelty", "diversity") for k in self._ks}

    def add(self, rows: NDArray[np.int64]) -> None:
        """Lists of some users, best first: catalogue rows [users, places], negative after a user's last item."""
        for k in self._ks:
            first = rows[:, :k]
            there = first >= 0
            self._times[k] += np.bincount(first[there], minlength=len(self._times[k]))
            lengths = there.sum(1)
            for name, of_item in (("popularity", self._share), ("novelty", self._novelty)):
                totals = np.where(there, of_item[first], 0.0).sum(1)
                self._mean(name, k, totals[lengths > 0] / lengths[lengths > 0])
            if self._unit is not None:
                self._mean("diversity", k, self._distances(self._unit, first, there))

    def _distances(
        self, unit: NDArray[np.float32], rows: NDArray[np.int64], there: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """The mean distance of the pairs of each list that has any, [such lists].

        Of n directions the sum has the squared length n + twice the sum of the cosines of all pairs.
        """
        at_once = max(1, _NUMBERS_AT_ONCE // (rows.shape[1] * unit.shape[1]))
        found = []
        for start in range(0, len(rows), at_once):
            some = slice(start, start + at_once)
            own = np.where(there[some, :, None], unit[rows[some]], np.float32(0))
            n = np.count_nonzero(own.any(2), axis=1)
            pairs = n > 1
            n, squares = n[pairs], np.square(own[pairs].sum(1, dtype=np.float64)).sum(1)
            found.append(1.0 - (squares - n) / (n * (n - 1)))
        return np.concatenate(found) if found else np.zeros(0)

    def _mean(self, name: str, k: int, values: NDArray[np.float64]) -> None:
        entry = self._sums[name, k]
        entry[0] += float(values.sum())
        entry[1] += len(values)

    def result(self) -> dict[str, float]:
        """Every metric by its name and cut-off; those are left out of which nobody's list says anything."""
        found: dict[str, float] = {}
        for k in self._ks:
            times = self._times[k][self._eligible]
            if not times.any():
                continue
            found[f"coverage@{k}"] = np.count_nonzero(times) / len(times)
            found[f"gini@{k}"] = gini(times)
            for name in ("popularity", "novelty", "diversity"):
                total, lists = self._sums[name, k]
                if lists:
                    found[f"{name}@{k}"] = total / lists
        return found


def gini(times: NDArray[np.int64]) -> float:
    """The Gini coefficient of counts that are not all zero: half the mean difference of two, by their mean."""
    ordered = np.sort(times).astype(np.float64)
    n = len(ordered)
    return float(2.0 * (np.arange(1, n + 1) * ordered).sum() / (n * ordered.sum()) - (n + 1) / n)


def _directions(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: NDArray[np.float32] = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return unit
