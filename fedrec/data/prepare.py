"""From plain columns to a prepared data set: filter, order by time, remove duplicates, and count all of it.

The rules, in the order in which they apply: unknown items, low ratings, duplicates, k-core, and with a split by time
users who begin after the first cut. Every interaction that is left out is counted under the name of the rule that took
it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import DataError
from fedrec.core.registry import datasets
from fedrec.data.split import MIN_EVALUATED
from fedrec.data.types import Catalogue, DataReport, Dataset, DataSummary, Interactions
from fedrec.datasets.base import DatasetConfig, IdColumn, Progress, RawData, RawItem, silent


def load(config: DatasetConfig, progress: Progress = silent) -> Dataset:
    """Read and prepare the data set that `config` names. Raises DataError."""
    return prepare(datasets.get(config.name)(config).read(progress), config)


def load_items(config: DatasetConfig, progress: Progress = silent) -> Dataset:
    """The catalogue of the data set that `config` names, and no interactions: all its items are eligible.

    Raises DataError.
    """
    listed, left_out = datasets.get(config.name)(config).list_items(progress)
    nothing = IdColumn(np.zeros(0, dtype=np.int32), ())
    listing = _listing(RawData(nothing, nothing, None, None, listed, {}))
    counts = dict(left_out)
    _count(counts, "duplicate_item", listing.duplicates)
    size = DataSummary(0, len(listing.item_ids), 0)
    if size.items < 2:
        raise DataError(f"the item table has {size.items} items, and at least 2 are needed: {counts or 'it is empty'}")
    return Dataset(
        name=config.name,
        catalogue=listing.catalogue,
        interactions=Interactions((), np.zeros(1, dtype=np.int64), np.zeros(0, dtype=np.int32)),
        eligible=np.arange(size.items, dtype=np.int32),
        report=DataReport(size, size, counts),
    )


def prepare(raw: RawData, config: DatasetConfig) -> Dataset:
    """Turn the columns of a reader into a data set.

    Users are ordered by their external id as text. Catalogue rows are in the order of the source's item list, or by
    external id as text where there is none. Of several interactions of one user with one item the first in time stays.

    Raises:
        DataError: Nothing is left to train on, or a rating filter meets data without ratings.
    """
    _check(raw, config)
    counts = dict(raw.counts)
    listing = _listing(raw)
    _count(counts, "duplicate_item", listing.duplicates)
    _count(counts, "unrated_item", listing.unrated)
    before = DataSummary(_distinct(raw.users.codes), _distinct(raw.items.codes), len(raw.users))
    items, held_out = len(listing.item_ids), config.held_out if config.split == "temporal" else None
    made = arrange(raw, listing.row_of_code, items, config.min_rating, config.k_core, counts, held_out)
    rows = made.items
    rated = np.flatnonzero(np.bincount(rows, minlength=len(listing.item_ids))).astype(np.int32)
    if len(rated) < 2:
        raise _too_small(before, counts, len(rated))

    catalogue, kept, eligible = listing.catalogue, rows, rated
    if config.items == "rated":
        row_now = np.full(len(listing.item_ids), -1, dtype=np.int32)
        row_now[rated] = np.arange(len(rated), dtype=np.int32)
        catalogue, kept, eligible = listing.subset(rated), row_now[rows], row_now[rated]
    after = DataSummary(made.users, len(rated), len(kept))
    return Dataset(
        name=config.name,
        catalogue=catalogue,
        interactions=Interactions(made.user_ids, made.offsets, kept, made.cuts),
        eligible=eligible,
        report=DataReport(before, after, counts),
    )


def arrange(
    raw: RawData,
    row_of_code: NDArray[np.int32],
    n_items: int,
    min_rating: float | None,
    k_core: int,
    counts: dict[str, int],
    held_out: float | None = None,
) -> Interactions:
    """The interactions that are left of raw columns, in order: what a simulation and a site of its own do alike.

    Args:
        raw: The columns.
        row_of_code: int32 [labels of the item column], catalogue rows, -1 where the item is unknown.
        n_items: Rows of the catalogue.
        min_rating: Interactions rated lower are left out (None: none are).
        k_core: Users and items with fewer interactions are removed (0: none are).
        counts: What each rule left out is added here.
        held_out: For a split by time, the share of interactions that are for test, and of those for validation.

    Raises DataError if there are too few different times to split by.
    """
    # Users by rank of their id, so that the order of the file does not name them.
    user_order = sorted(range(len(raw.users.labels)), key=raw.users.labels.__getitem__)
    rank = np.empty(len(user_order), dtype=np.int32)
    rank[user_order] = np.arange(len(user_order), dtype=np.int32)
    users, rows, times = rank[raw.users.codes], row_of_code[raw.items.codes], raw.times

    known = rows >= 0
    _count(counts, "unknown_item", int(np.count_nonzero(~known)))
    keep = known
    if min_rating is not None and raw.ratings is not None:
        keep = known & (raw.ratings >= min_rating)
        _count(counts, "low_rating", int(np.count_nonzero(known & ~keep)))
    if not keep.all():
        users, rows, times = users[keep], rows[keep], None if times is None else times[keep]

    # Both sorts are stable: interactions of one instant stay in the order of the file.
    if times is None:
        order = stable_order(users)
    else:
        in_time = stable_order(times)
        order = in_time[stable_order(users[in_time])]
    users, rows = users[order], rows[order]

    first = _first_of_pairs(users, rows, n_items)
    _count(counts, "duplicate", int(np.count_nonzero(~first)))
    users, rows, order = users[first], rows[first], order[first]

    left = _in_k_core(users, rows, k_core)
    _count(counts, "k_core", int(np.count_nonzero(~left)))
    users, rows, order = users[left], rows[left], order[left]

    parts = None if held_out is None or times is None else _parts(times[order], held_out)
    if parts is not None:
        begun = (np.bincount(users[parts == 0], minlength=len(user_order)) > 0)[users]
        _count(counts, "users_after_cut", _distinct(users[~begun]))
        users, rows, parts = users[begun], rows[begun], parts[begun]

    lengths = np.bincount(users, minlength=len(user_order))
    present = np.flatnonzero(lengths)
    offsets = np.concatenate(([0], np.cumsum(lengths[present]))).astype(np.int64)
    user_ids = tuple(raw.users.labels[user_order[user]] for user in present.tolist())
    if parts is None:
        _count(counts, "users_too_short", int(np.count_nonzero(lengths[present] < MIN_EVALUATED)))
        return Interactions(user_ids, offsets, rows)
    before = [np.bincount(users[parts < part], minlength=len(user_order))[present] for part in (1, 2)]
    cuts = offsets[:-1, None] + np.stack(before, axis=1)
    _count(counts, "users_not_tested", int(np.count_nonzero(cuts[:, 1] == offsets[1:])))
    _count(counts, "items_after_cut", _distinct(rows) - _distinct(rows[parts < 2]))
    return Interactions(user_ids, offsets, rows, cuts)


def stable_order(values: NDArray[np.integer] | NDArray[np.float64]) -> NDArray[np.int64]:
    """What `numpy.argsort(values, kind="stable")` gives, int64 [values].

    Whole numbers that leave room for it are sorted together with their places, which takes a fifth of the time.
    """
    if not len(values):
        return np.zeros(0, dtype=np.int64)
    bits = (len(values) - 1).bit_length()
    if values.dtype.kind == "f" or (int(values.max()) - (least := int(values.min()))).bit_length() + bits > 63:
        return np.argsort(values, kind="stable")
    packed: NDArray[np.int64] = (values.astype(np.int64) - least) << bits
    packed |= np.arange(len(values))
    packed.sort()
    packed &= (1 << bits) - 1
    return packed


def _parts(times: NDArray[np.int64] | NDArray[np.float64], held_out: float) -> NDArray[np.int8]:
    """What each interaction is for by its time alone: 0 to train, 1 for validation, 2 for test; int8 [interactions].

    The two moments are times of interactions, and all of one moment are on the later side. Raises DataError if one of
    the parts would be empty.
    """
    at = [int(len(times) * (1 - share)) for share in (2 * held_out, held_out)]
    if not len(times):
        return np.zeros(0, dtype=np.int8)
    if at[0] == at[1]:
        raise DataError(
            f"dataset.held_out={held_out:g}: of {len(times)} interactions that is less than one for validation; give a "
            "larger dataset.held_out"
        )
    validation, test = np.partition(times, at)[at]
    parts = (times >= validation).astype(np.int8) + (times >= test)
    found: NDArray[np.int8] = parts.astype(np.int8)
    if len(np.unique(found)) < 3:
        raise DataError(
            f"dataset.split=temporal: the latest {100 * held_out:g} % of {len(times)} interactions and as many before "
            f"them do not lie apart in time ({times.min()} to {times.max()}): there are too few different times; give "
            "another dataset.held_out, or dataset.split=leave_one_out"
        )
    return found


def _count(counts: dict[str, int], rule: str, number: int) -> None:
    if number:
        counts[rule] = counts.get(rule, 0) + number


@dataclass(frozen=True)
class _Listing:
    """All known items; `row_of_code` maps the codes of the raw item column to rows, -1 where the item is unknown."""

    item_ids: tuple[str, ...]
    titles: tuple[str, ...]
    sentences: tuple[str, ...]
    row_of_code: NDArray[np.int32]
    duplicates: int
    unrated: int

    @property
    def catalogue(self) -> Catalogue:
        return Catalogue(self.item_ids, self.titles, self.sentences)

    def subset(self, rows: NDArray[np.int32]) -> Catalogue:
        chosen = rows.tolist()
        ids, titles, sentences = self.item_ids, self.titles, self.sentences
        return Catalogue(
            tuple(ids[row] for row in chosen),
            tuple(titles[row] for row in chosen),
            tuple(sentences[row] for row in chosen),
        )


def _listing(raw: RawData) -> _Listing:
    labels = raw.items.labels
    occurring = np.zeros(len(labels), dtype=bool)
    occurring[raw.items.codes] = True
    if raw.listed is None:
        codes = sorted(np.flatnonzero(occurring).tolist(), key=labels.__getitem__)
        row_of_code = np.full(len(labels), -1, dtype=np.int32)
        row_of_code[codes] = np.arange(len(codes), dtype=np.int32)
        ids = tuple(labels[code] for code in codes)
        return _Listing(ids, ids, ("",) * len(ids), row_of_code, 0, 0)
    row_of_id: dict[str, int] = {}
    kept: list[RawItem] = []
    for item in raw.listed:
        if item.item_id not in row_of_id:
            row_of_id[item.item_id] = len(kept)
            kept.append(item)
    row_of_code = np.array([row_of_id.get(label, -1) for label in labels], dtype=np.int32)
    met = row_of_code[occurring]
    return _Listing(
        item_ids=tuple(item.item_id for item in kept),
        titles=tuple(item.title or item.item_id for item in kept),
        sentences=tuple(item.sentence for item in kept),
        row_of_code=row_of_code,
        duplicates=len(raw.listed) - len(kept),
        unrated=len(kept) - int(np.count_nonzero(met >= 0)),
    )


def _distinct(codes: NDArray[np.int32]) -> int:
    return int(np.count_nonzero(np.bincount(codes))) if len(codes) else 0


def _first_of_pairs(users: NDArray[np.int32], rows: NDArray[np.int32], n_items: int) -> NDArray[np.bool_]:
    """True where a (user, item) pair occurs for the first time; the columns are in time order within a user."""
    pairs = users.astype(np.int64) * n_items + rows
    order = stable_order(pairs)
    ordered = pairs[order]
    first = np.ones(len(pairs), dtype=bool)
    first[order[1:][ordered[1:] == ordered[:-1]]] = False
    return first


def _in_k_core(users: NDArray[np.int32], rows: NDArray[np.int32], k: int) -> NDArray[np.bool_]:
    """What is left when users and items with fewer than k interactions are removed until there are none."""
    keep = np.ones(len(users), dtype=bool)
    while k > 1 and keep.any():
        enough = np.bincount(users[keep], minlength=int(users.max()) + 1)[users] >= k
        enough &= np.bincount(rows[keep], minlength=int(rows.max()) + 1)[rows] >= k
        if (enough & keep).sum() == keep.sum():
            break
        keep &= enough
    return keep


def _check(raw: RawData, config: DatasetConfig) -> None:
    sizes = {"users": len(raw.users), "items": len(raw.items)}
    sizes |= {name: len(c) for name, c in (("times", raw.times), ("ratings", raw.ratings)) if c is not None}
    if len(set(sizes.values())) > 1:
        raise DataError(f"dataset={config.name}: its reader gave columns of different lengths: {sizes}")
    for name, column in (("times", raw.times), ("ratings", raw.ratings)):
        if column is not None and not np.isfinite(column).all():
            raise DataError(f"dataset={config.name}: its reader gave {name} that are not finite numbers")
    if config.split == "temporal" and raw.times is None:
        raise DataError(
            f"dataset.split=temporal was asked, but the interactions of dataset={config.name} carry no times: name "
            "their time column, or set dataset.split=leave_one_out"
        )
    if config.min_rating is not None and raw.ratings is None:
        raise DataError(
            f"dataset.min_rating={config.min_rating} was asked, but the interactions of dataset={config.name} carry no "
            "ratings: name their rating column, or set dataset.min_rating=null"
        )


def _too_small(before: DataSummary, counts: dict[str, int], items: int) -> DataError:
    lost = ", ".join(f"{rule} {number}" for rule, number in counts.items()) or "nothing"
    return DataError(
        f"the prepared data has {items} items with interactions, and at least 2 are needed: {before.interactions} "
        f"interactions of {before.users} users with {before.items} items were read, left out or counted: {lost}. Lower "
        "dataset.k_core or dataset.min_rating; where unknown_item is high, check that the ids of the interactions "
        "are written as in the item list"
    )
