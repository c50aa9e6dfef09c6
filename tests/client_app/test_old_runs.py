"""A site that joins another run deletes what older runs have left, and nothing that is still of use."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from client_app.stores import frozen
from client_app.stores.frozen import FrozenStore
from client_app.stores.last_model import RUNS_KEPT, LastModel, keep_model, kept_models
from client_app.stores.old_runs import forget_old_runs
from client_app.stores.pieces import close_file
from client_app.stores.store import PrivateStore
from fedrec.core.tensors import Spec, TensorSpec, content_digest

SPEC: Spec = {"user": TensorSpec((64,))}
KEYS = np.arange(200, dtype=np.uint64)


def key(run: int) -> str:
    return f"{run:016x}"


def store(state: Path, run: int) -> PrivateStore:
    return PrivateStore(state, key(run), SPEC)


def train(state: Path, run: int) -> None:
    store(state, run).save(1, KEYS, {"user": torch.full((len(KEYS), 64), float(run))}, 0)


def remembered(state: Path, runs: int) -> list[int]:
    return [run for run in range(runs) if store(state, run).load(KEYS, 9)[1].all()]


def test_private_tensors_of_the_runs_that_trained_last_stay(tmp_path: Path) -> None:
    for run in range(5):
        train(tmp_path, run)
        store(tmp_path, run).resume([3])
    train(tmp_path, 1)  # it goes on
    forget_old_runs(tmp_path, key(9), Counter())
    assert RUNS_KEPT == 2
    assert remembered(tmp_path, 5) == [1, 4]
    with sqlite3.connect(tmp_path / "users.sqlite") as file:
        for table, column in (("run", "key"), ("resumed", "run")):
            kept = {value for (value,) in file.execute(f"SELECT {column} FROM {table}")}
            assert kept == {key(1), key(4)}, "nothing at all is left of the others"
    close_file(tmp_path / "users.sqlite", synced=True)
    assert remembered(tmp_path, 5) == [1, 4], "also for the next process"
    train(tmp_path, 0)
    assert remembered(tmp_path, 5) == [0, 1, 4], "a run that was forgotten may begin again"


def test_those_of_the_joined_run_and_of_kept_models_stay(tmp_path: Path) -> None:
    for run in range(5):
        train(tmp_path, run)
    keep_model(tmp_path, key(1), LastModel("{}", 0, 1, "", ""), b"")
    forget_old_runs(tmp_path, key(0), Counter())
    assert remembered(tmp_path, 5) == [0, 1, 3, 4]


def test_the_pages_that_have_come_free_are_filled_again(tmp_path: Path) -> None:
    sizes = []
    for run in range(8):
        forget_old_runs(tmp_path, key(run), Counter())
        train(tmp_path, run)
        sizes.append((tmp_path / "users.sqlite").stat().st_size)
    # It grows up to so many runs and the one that trains.
    assert sizes[RUNS_KEPT - 1] < sizes[RUNS_KEPT] < sizes[-1] + 1 < 1.1 * sizes[RUNS_KEPT]


def test_what_a_kept_model_needs_stays_frozen(tmp_path: Path) -> None:
    own = FrozenStore(tmp_path)
    names = []
    for number in range(4):
        tensors = {"base": torch.full((2, 2), float(number))}
        names.append(content_digest(tensors))
        own.put(tensors, names[-1])
    version = "f" * 64
    own.put({"base": torch.ones(3)}, version, content_digest({"base": torch.ones(3)}))
    keep_model(tmp_path, key(1), LastModel(f'{{"catalogue": "{names[0]}"}}', 0, 1, "", names[1]), b"packet" * 10)
    keep_model(tmp_path, key(2), LastModel("{}", 0, 1, "", version), names[2].encode())  # a packet names nothing
    for path in (tmp_path / "frozen").iterdir():
        os.utime(path, (1e9, 1e9))
    forget_old_runs(tmp_path, key(3), Counter())
    assert {path.stem for path in (tmp_path / "frozen").iterdir()} == {names[0], names[1], version}
    assert len(kept_models(tmp_path)) == 2
    frozen._load.cache_clear()


def test_a_new_site_has_nothing_to_delete(tmp_path: Path) -> None:
    forget_old_runs(tmp_path, key(1), Counter())
    assert not (tmp_path / "users.sqlite").exists()


def test_a_store_that_cannot_be_tidied_keeps_nobody_from_joining(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(state_dir: Path) -> FrozenStore:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("client_app.stores.old_runs.FrozenStore", full)
    with caplog.at_level(logging.WARNING, "fedrec"):
        forget_old_runs(tmp_path, key(1), Counter())
    assert "could not be deleted" in caplog.text
    assert "No space left" in caplog.text
