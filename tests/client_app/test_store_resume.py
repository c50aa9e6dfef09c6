"""A store follows each resumption of its run once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from client_app.stores.store import PrivateStore
from fedrec.core.tensors import TensorSpec

SPEC = {"user": TensorSpec((2,))}
ANNA, BEN = np.array([1], dtype=np.uint64), np.array([2], dtype=np.uint64)


def save(store: PrivateStore, key: np.ndarray, round: int, value: float) -> None:
    store.save(round, key, {"user": torch.full((1, 2), float(value))}, checkpoint_round=0)


def value(store: PrivateStore, key: np.ndarray) -> float:
    return float(store.load(key, before=1000)[0]["user"][0, 0])


def test_each_resumption_is_followed_once_whoever_asks(tmp_path: Path) -> None:
    store = PrivateStore(tmp_path, "r", SPEC)
    for round in range(1, 6):
        save(store, ANNA, round, round)
        save(store, BEN, round, -round)
    store.resume([3])
    assert (value(store, ANNA), value(store, BEN)) == (3.0, -3.0)
    save(store, ANNA, 4, 40.0)
    for again in (store, PrivateStore(tmp_path, "r", SPEC, synced=False)):
        again.resume([3])
        assert value(again, ANNA) == 40.0
    store.resume([3, 3])
    assert value(store, ANNA) == 3.0


def test_who_was_away_goes_back_to_the_earliest_round_that_it_missed(tmp_path: Path) -> None:
    store = PrivateStore(tmp_path, "r", SPEC)
    for round in range(1, 9):
        save(store, ANNA, round, round)
    store.resume([8, 2, 6])
    assert value(store, ANNA) == 2.0


def test_another_run_and_an_empty_store_are_left_alone(tmp_path: Path) -> None:
    other = PrivateStore(tmp_path, "other", SPEC)
    save(other, ANNA, 5, 5.0)
    store = PrivateStore(tmp_path, "r", SPEC)
    store.resume([3])
    save(store, ANNA, 4, 4.0)
    store.resume([3])
    assert (value(store, ANNA), value(other, ANNA)) == (4.0, 5.0)
