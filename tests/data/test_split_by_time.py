"""The split by time against its definition in plain Python, in the store, in messages, and through a whole run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.core.errors import ConfigError, DataError, StoreError
from fedrec.data.prepare import prepare
from fedrec.data.split import Split, evaluated, histories, targets
from fedrec.data.store import open_store, verify_store, write_store
from fedrec.data.types import Dataset
from fedrec.datasets.base import DatasetConfig, RawData
from fedrec.evaluation.baselines import baseline_results

ROWS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7), st.integers(0, 12)), min_size=1, max_size=60)
Config = Callable[..., DatasetConfig]
Raw = Callable[..., RawData]


@pytest.fixture(scope="module")
def made(config: Config, raw: Raw) -> Callable[..., Dataset]:
    """Prepared data from (user, item, time) rows."""

    def make(rows: list[tuple[int, int, int]], **changes: Any) -> Dataset:
        asked = {"split": "temporal", "held_out": 0.2, **changes}
        named = [(f"u{user}", f"i{item}", time) for user, item, time in rows]
        return prepare(raw(named), config("table", interactions="/nothing", **asked))

    return make


def by_definition(rows: list[tuple[int, int, int]], held_out: float) -> dict[str, Any] | None:
    """Users' items before the first moment, between the two, and after the second; None if one part has none."""
    kept: list[tuple[int, int, int]] = []
    for user, item, time in sorted(rows, key=lambda row: row[2]):  # stable, as the file decides between equal times
        if (user, item) not in {(one, other) for one, other, _ in kept}:
            kept.append((user, item, time))
    times = sorted(time for *_, time in kept)
    first, second = (times[int(len(times) * (1 - share))] for share in (2 * held_out, held_out))
    parts = {"train": kept, "validation": kept, "test": kept}
    parts["train"] = [row for row in kept if row[2] < first]
    parts["validation"] = [row for row in kept if first <= row[2] < second]
    parts["test"] = [row for row in kept if row[2] >= second]
    if not all(parts.values()):
        return None
    users = sorted({user for user, *_ in parts["train"]})
    return {name: {user: [i for u, i, _ in part if u == user] for user in users} for name, part in parts.items()}


@settings(max_examples=150, deadline=None)
@given(rows=ROWS)
def test_it_is_what_the_two_moments_say(rows: list[tuple[int, int, int]], made: Callable[..., Dataset]) -> None:
    expected = by_definition(rows, 0.2)
    if expected is None:
        with pytest.raises(DataError, match=r"too few different times|less than one for validation"):
            made(rows)
        return
    if len({item for part in expected.values() for mine in part.values() for item in mine}) < 2:
        return
    data = made(rows)
    inner, ids = data.interactions, data.catalogue.item_ids
    users = list(expected["train"])
    assert list(inner.user_ids) == [f"u{user}" for user in users]

    def named(split: Split) -> list[list[str]]:
        found = histories(inner, split)
        return [[ids[row] for row in found.of(n).tolist()] for n in range(len(found))]

    train, window, after = ([expected[name][user] for user in users] for name in ("train", "validation", "test"))
    spelled = [[[f"i{item}" for item in mine] for mine in part] for part in (train, window, after)]
    assert named("train") == named("validation") == spelled[0]
    assert named("test") == [one + two for one, two in zip(spelled[0], spelled[1], strict=True)]
    assert named("all") == [one + two + three for one, two, three in zip(*spelled, strict=True)]
    for of, held in (("validation", spelled[1]), ("test", spelled[2])):
        assert evaluated(inner, of=of).tolist() == [bool(mine) for mine in held]  # type: ignore[arg-type]
        assert [ids[row] if row >= 0 else None for row in targets(inner, of).tolist()] == [  # type: ignore[arg-type]
            mine[0] if mine else None for mine in held
        ]
    counts = data.report.counts
    assert counts.get("users_not_tested", 0) == sum(not mine for mine in after)
    began = {user for user, *_ in rows}
    assert counts.get("users_after_cut", 0) == len(began) - len(users)


def test_what_is_counted(made: Callable[..., Dataset]) -> None:
    rows = [
        (0, 0, 1),
        (0, 1, 2),
        (1, 0, 1),
        (1, 2, 3),
        (2, 1, 2),
        (2, 0, 3),
        (0, 2, 7),
        (1, 3, 8),
        (3, 3, 9),
        (0, 4, 9),
    ]
    data = made(rows)
    assert data.report.counts == {"users_after_cut": 1, "users_not_tested": 2, "items_after_cut": 1}
    assert targets(data.interactions, "validation").tolist() == [2, 3, -1]
    assert targets(data.interactions, "test").tolist() == [4, -1, -1]


def test_popularity_counts_what_is_before_the_ranking(made: Callable[..., Dataset]) -> None:
    rng = np.random.default_rng(1)
    data = made([(u, i, int(t)) for u in range(6) for i, t in zip(range(8), rng.permutation(40), strict=False)])
    inner = data.interactions
    for of in ("validation", "test"):
        results = baseline_results(inner, data.eligible, None, of, [1])
        history = histories(inner, of)
        counts = np.bincount(history.items, minlength=8).astype(float)
        values = []
        for user in np.flatnonzero(evaluated(inner, of=of)).tolist():
            scores = np.delete(counts, history.of(user))
            own = counts[targets(inner, of)[user]]
            best = scores.max() == own
            values.append(best / (scores == own).sum())
        assert results.means["popularity"]["hr@1"] == pytest.approx(np.mean(values))


def test_without_times_there_is_no_split_by_time(config: Config, raw: Raw) -> None:
    asked = config("table", interactions="/nothing", split="temporal", time_column=None)
    with pytest.raises(DataError, match="carry no times"):
        prepare(raw([("a", "x"), ("b", "y")]), asked)


def test_a_store_keeps_the_cuts_and_names_them(made: Callable[..., Dataset], tmp_path: Path) -> None:
    rows = [(user, item, 3 * item + user) for user in range(4) for item in range(6)]
    by_time, usual = made(rows).interactions, made(rows, split="leave_one_out").interactions
    folder = write_store(by_time, tmp_path)
    assert folder != write_store(usual, tmp_path)
    opened = open_store(folder)
    assert by_time.cuts is not None
    assert opened.cuts is not None
    assert opened.cuts.tolist() == by_time.cuts.tolist()
    verify_store(folder)
    spoilt = by_time.cuts.reshape(-1).copy()
    spoilt[0] = 99
    np.save(folder / "cuts.npy", spoilt)
    open_store.cache_clear()
    with pytest.raises(StoreError, match="outside of its user's history"):
        open_store(folder)
    meta = json.loads((folder / "meta.json").read_text())
    meta["lengths"]["cuts"] = 2
    (folder / "meta.json").write_text(json.dumps(meta))
    np.save(folder / "cuts.npy", spoilt[:2])
    with pytest.raises(StoreError, match="not two for each user"):
        open_store.__wrapped__(folder)


def test_a_deployment_refuses_it() -> None:
    from fedrec.config.compose import compose

    texts = ["runtime=deployment", "dataset=table", "dataset.item_table=/items.csv", "dataset.split=temporal"]
    with pytest.raises(ConfigError, match=r"dataset\.split=temporal: with runtime=deployment"):
        compose(texts, base=None)
