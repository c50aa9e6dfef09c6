"""Preparation: each rule by an example, and all of them against a slow and obvious oracle."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedrec.core.errors import DataError
from fedrec.data.prepare import prepare, stable_order
from fedrec.data.types import Dataset


def as_histories(dataset: Dataset) -> dict[str, list[str]]:
    ids, found = dataset.catalogue.item_ids, dataset.interactions
    return {user: [ids[row] for row in found.history(n).tolist()] for n, user in enumerate(found.user_ids)}


def oracle(
    rows: list[tuple[str, str, int, float]], listed: list[str] | None, k_core: int, min_rating: float | None
) -> tuple[dict[str, list[str]], dict[str, int]]:
    """One interaction after the other, sets and lists only."""
    counts: Counter[str] = Counter()
    left = []
    for position, (user, item, time, rating) in enumerate(rows):
        if listed is not None and item not in listed:
            counts["unknown_item"] += 1
        elif min_rating is not None and rating < min_rating:
            counts["low_rating"] += 1
        else:
            left.append((time, position, user, item))
    seen, distinct = set(), []
    for time, position, user, item in sorted(left):
        if (user, item) in seen:
            counts["duplicate"] += 1
        else:
            seen.add((user, item))
            distinct.append((time, position, user, item))
    while True:
        of_user = Counter(row[2] for row in distinct)
        of_item = Counter(row[3] for row in distinct)
        kept = [row for row in distinct if of_user[row[2]] >= k_core and of_item[row[3]] >= k_core]
        counts["k_core"] += len(distinct) - len(kept)
        if len(kept) == len(distinct):
            break
        distinct = kept
    histories = {user: [row[3] for row in distinct if row[2] == user] for user in sorted({row[2] for row in distinct})}
    counts["users_too_short"] = sum(len(history) < 3 for history in histories.values())
    if listed is not None:
        counts["duplicate_item"] = len(listed) - len(set(listed))
        counts["unrated_item"] = len(set(listed) - {row[1] for row in rows})
    return histories, {rule: number for rule, number in counts.items() if number}


@settings(max_examples=250, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from(["b", "a", "10", "9", "é"]),
            st.sampled_from(["x", "y", "z", "2", "11"]),
            st.integers(0, 3),
            st.sampled_from([1.0, 2.5, 4.0]),
        ),
        max_size=40,
    ),
    listed=st.none() | st.lists(st.sampled_from(["x", "y", "z", "2", "never"]), max_size=7),
    k_core=st.integers(0, 3),
    min_rating=st.sampled_from([None, 2.5]),
    items=st.sampled_from(["listed", "rated"]),
)
def test_it_does_what_the_oracle_does(
    rows: list[tuple[str, str, int, float]],
    listed: list[str] | None,
    k_core: int,
    min_rating: float | None,
    items: str,
    config: Any,
    raw: Any,
) -> None:
    histories, counts = oracle(rows, listed, k_core, min_rating)
    chosen = config("table", interactions="/x", k_core=k_core, min_rating=min_rating, items=items)
    columns = raw(rows or [], listed)
    rated = {item for history in histories.values() for item in history}
    if len(rated) < 2 or (not rows and min_rating is not None):
        with pytest.raises(DataError):
            prepare(columns, chosen)
        return
    dataset = prepare(columns, chosen)
    assert as_histories(dataset) == histories
    assert dataset.report.counts == counts
    assert list(dataset.interactions.user_ids) == sorted(histories)
    ids = dataset.catalogue.item_ids
    assert {ids[row] for row in dataset.eligible} == rated
    assert (np.diff(dataset.eligible) > 0).all()
    order = sorted({item for _, item, _, _ in rows}) if listed is None else list(dict.fromkeys(listed))
    assert list(ids) == [item for item in order if items == "listed" or item in rated]
    before, after = dataset.report.before, dataset.report.after
    assert (before.users, before.items) == (len({row[0] for row in rows}), len({row[1] for row in rows}))
    assert (before.interactions, after.interactions) == (len(rows), sum(map(len, histories.values())))
    assert (after.users, after.items) == (len(histories), len(rated))
    assert dataset.interactions.items.dtype == np.int32
    assert dataset.interactions.offsets.dtype == np.int64


def test_clocks_tie_and_the_file_decides(config: Any, raw: Any) -> None:
    dataset = prepare(raw([("u", "c", 5), ("u", "a", 5), ("u", "b", 4), ("u", "d", 5)]), config("synthetic"))
    assert as_histories(dataset) == {"u": ["b", "c", "a", "d"]}


def test_of_duplicates_the_first_in_time_stays(config: Any, raw: Any) -> None:
    dataset = prepare(raw([("u", "a", 9), ("u", "b", 5), ("u", "a", 1)]), config("synthetic"))
    assert as_histories(dataset) == {"u": ["a", "b"]}
    assert dataset.report.counts == {"duplicate": 1, "users_too_short": 1}


def test_without_times_the_order_of_the_file_is_the_order(config: Any, raw: Any) -> None:
    dataset = prepare(raw([("v", "b"), ("u", "z"), ("v", "a"), ("u", "b")]), config("synthetic"))
    assert as_histories(dataset) == {"u": ["z", "b"], "v": ["b", "a"]}


def test_titles_and_sentences_stay_with_their_items(config: Any, raw: Any) -> None:
    rows = [("u", "c"), ("u", "a"), ("v", "c"), ("v", "a"), ("v", "gone")]
    dataset = prepare(raw(rows, ["c", "b", "a"]), config("synthetic", items="rated"))
    assert dataset.catalogue.item_ids == ("c", "a")
    assert dataset.catalogue.titles == ("title of c", "title of a")
    assert dataset.catalogue.sentences == ("text of c", "text of a")
    assert dataset.report.counts == {"unrated_item": 1, "unknown_item": 1, "users_too_short": 2}


def test_without_a_list_the_id_is_the_title(config: Any, raw: Any) -> None:
    dataset = prepare(raw([("u", "b"), ("u", "a")]), config("synthetic"))
    assert dataset.catalogue.item_ids == dataset.catalogue.titles == ("a", "b")
    assert dataset.catalogue.sentences == ("", "")


def test_nanosecond_clocks_are_not_rounded(config: Any, raw: Any) -> None:
    now = 1_500_000_000_000_000_000
    dataset = prepare(raw([("u", "b", now + 1), ("u", "a", now), ("u", "c", now + 2)]), config("synthetic"))
    assert as_histories(dataset) == {"u": ["a", "b", "c"]}


def test_the_k_core_is_repeated(config: Any, raw: Any) -> None:
    # Without z, which v alone has, v has one item left; without v, x has one user left; then u goes too.
    rows = [("u", "x"), ("u", "y"), ("v", "x"), ("v", "z"), ("w", "y")]
    with pytest.raises(DataError, match=r"0 items .* 5 interactions of 3 users .*k_core 5.*Lower dataset.k_core"):
        prepare(raw(rows), config("synthetic", k_core=2))


def test_a_rating_filter_without_ratings_is_an_error(config: Any, raw: Any) -> None:
    with pytest.raises(DataError, match=r"dataset.min_rating=4.0 .* no ratings: .* set dataset.min_rating=null"):
        prepare(raw([("u", "a", 1), ("u", "b", 2)]), config("synthetic", min_rating=4.0))


def test_items_that_are_all_unknown_say_where_to_look(config: Any, raw: Any) -> None:
    with pytest.raises(DataError, match=r"unknown_item 2.*check that the ids"):
        prepare(raw([("u", "1"), ("u", "2")], ["01", "02"]), config("synthetic"))


def test_a_reader_that_breaks_the_contract_is_named(config: Any, raw: Any) -> None:
    with pytest.raises(DataError, match="times that are not finite"):
        prepare(raw([("u", "a", 1.0), ("u", "b", float("nan"))]), config("synthetic"))


@given(st.lists(st.integers(-5, 5)), st.sampled_from([np.int32, np.int64, np.float64]))
@example([2**62, -(2**62), 2**62, 0], np.int64)  # no room for the places
@example([2**61, -(2**61), 2**61], np.int64)
def test_a_stable_order_is_numpys(values: list[int], kind: type[np.number]) -> None:
    column = np.array(values, dtype=kind)
    assert stable_order(column).tolist() == np.argsort(column, kind="stable").tolist()
