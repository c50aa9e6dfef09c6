"""The users' private store keeps versions, survives what happens to disks and processes, and says what is wrong."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from client_app.stores.pieces import close_file
from client_app.stores.store import PrivateStore
from fedrec.core.errors import StoreError
from fedrec.core.tensors import Spec, Tensors, TensorSpec

SPEC: Spec = {"user": TensorSpec((3,)), "head": TensorSpec((2, 2)), "seen": TensorSpec((), "int64")}
KEYS = np.array([5, 2**64 - 1, 2**63, 0], dtype=np.uint64)
ROOT = Path(__file__).resolve().parents[2]


def tensors(value: float, users: int = len(KEYS)) -> Tensors:
    number = torch.arange(users, dtype=torch.float32) + value
    return {
        "user": number[:, None].repeat(1, 3),
        "head": -number[:, None, None].repeat(1, 2, 2),
        "seen": (number * 10).long(),
    }


@pytest.fixture
def store(tmp_path: Path) -> PrivateStore:
    return PrivateStore(tmp_path, "r", SPEC)


def values(store: PrivateStore, before: int, keys: np.ndarray = KEYS) -> list[float | None]:
    loaded, found = store.load(keys, before)
    return [float(row[0]) if here else None for row, here in zip(loaded["user"], found, strict=True)]


def versions(store: PrivateStore) -> list[int]:
    """The rounds of which the first user has a version."""
    return [number for number in range(30) if values(store, number + 1, KEYS[:1]) != values(store, number, KEYS[:1])]


def test_what_was_saved_is_loaded_in_any_order(store: PrivateStore) -> None:
    store.save(1, KEYS, tensors(0.0), 0)
    order = np.array([2, 0, 3])
    loaded, found = store.load(KEYS[order], before=2)
    assert found.all()
    for name, tensor in tensors(0.0).items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor[order])
    loaded["user"] += 1
    assert values(store, 2) == [0.0, 1.0, 2.0, 3.0]


def test_unknown_users_are_zero_and_said_to_be_unknown(store: PrivateStore) -> None:
    store.save(1, KEYS[:1], tensors(7.0, 1), 0)
    loaded, found = store.load(KEYS, before=2)
    assert found.tolist() == [True, False, False, False]
    assert not loaded["user"][1:].any()
    assert store.load(KEYS[:0], before=2)[1].shape == (0,)


def test_a_version_is_for_rounds_after_it(store: PrivateStore) -> None:
    for round in (2, 4):
        store.save(round, KEYS, tensors(float(round)), 0)
    seen = [values(store, before)[0] for before in (1, 2, 3, 4, 5, 100)]
    assert seen == [None, None, 2.0, 2.0, 4.0, 4.0]


def test_a_round_done_again_replaces_its_version(store: PrivateStore) -> None:
    store.save(1, KEYS, tensors(0.0), 0)
    store.save(1, KEYS, tensors(50.0), 0)
    assert values(store, 2)[0] == 50.0


def test_what_may_be_asked_for_is_kept(store: PrivateStore) -> None:
    """Every version newer than the checkpoint, and the newest that is not; others may go."""
    for round in range(1, 8):
        store.save(round, KEYS, tensors(float(round)), checkpoint_round=0)
    assert versions(store) == [1, 2, 3, 4, 5, 6, 7]
    store.save(8, KEYS, tensors(8.0), checkpoint_round=5)
    assert set(versions(store)) >= {5, 6, 7, 8}, "a run that goes on from round 5 needs that of 5"
    store.save(9, KEYS[1:], tensors(9.0, 3), checkpoint_round=9)
    store.save(20, KEYS, tensors(20.0), checkpoint_round=15)
    assert set(versions(store)) >= {8, 20}, "none of round 15: the newest before it"


@pytest.mark.parametrize("at_once", [1, 7, 300])
def test_what_nothing_can_ask_for_makes_way(tmp_path: Path, at_once: int) -> None:
    store = PrivateStore(tmp_path, "r", SPEC, synced=False)
    keys = np.arange(300, dtype=np.uint64)
    rng = np.random.default_rng(0)
    expected = np.full(300, -1.0)
    sizes = []
    for round in range(1, 1 + 9_000 // at_once):
        some = rng.choice(300, at_once, replace=False)
        store.save(round, keys[some], tensors(float(round), at_once), checkpoint_round=round - 1)
        expected[some] = np.arange(at_once) + float(round)
        if round % (3000 // at_once) == 0:
            sizes.append((tmp_path / "users.sqlite").stat().st_size)
            loaded, found = store.load(keys, before=round + 1)
            np.testing.assert_array_equal(loaded["user"][:, 0].numpy()[found], expected[found])
            assert found.tolist() == (expected >= 0).tolist()
    assert sizes[-1] < 1.3 * sizes[0], "three times as many versions were written, and the file is as large as before"


def test_versions_by_a_plain_oracle(tmp_path: Path) -> None:
    """Random saves, checkpoints, rounds done again and rollbacks, by two stores of one file."""
    rng = np.random.default_rng(1)
    keys = rng.integers(0, 2**64, 400, dtype=np.uint64)
    stores = [PrivateStore(tmp_path, "r", SPEC) for _ in range(2)]
    written: dict[int, dict[int, float]] = {}
    round = checkpoint = 0
    for step in range(250):
        store = stores[step % 2]
        if step % 50 == 49:
            store.rollback(checkpoint)
            written = {user: {r: v for r, v in of.items() if r <= checkpoint} for user, of in written.items()}
            round = checkpoint
        round += int(rng.integers(0, 2)) or (round == 0)
        checkpoint = round - 1 if step % 7 == 0 else checkpoint
        some = rng.choice(400, int(rng.integers(1, 80)), replace=False)
        store.save(round, keys[some], tensors(float(step), len(some)), checkpoint)
        for position, user in enumerate(some.tolist()):
            written.setdefault(user, {})[round] = float(step + position)
        before = round + 1 if step % 3 else int(rng.integers(checkpoint + 1, round + 2))
        asked = rng.permutation(400)[:100]
        found = values(stores[(step + 1) % 2], before, keys[asked])
        for user, value in zip(asked.tolist(), found, strict=True):
            mine = {r: v for r, v in written.get(user, {}).items() if r < before}
            assert value == (mine[max(mine)] if mine else None)


def test_a_store_put_in_the_place_of_another_is_told_apart(tmp_path: Path) -> None:
    first = PrivateStore(tmp_path, "r", SPEC)
    first.save(1, KEYS, tensors(1.0), 0)
    (tmp_path / "users.sqlite").rename(tmp_path / "kept")
    assert values(first, 9) == [None] * 4
    first.save(1, KEYS[:1], tensors(5.0, 1), 0)
    assert values(first, 9) == [5.0, None, None, None]
    (tmp_path / "kept").replace(tmp_path / "users.sqlite")
    assert values(first, 9) == [1.0, 2.0, 3.0, 4.0]


def test_an_older_copy_in_its_place_is_never_read_as_the_newer(tmp_path: Path) -> None:
    store = PrivateStore(tmp_path, "r", SPEC)
    store.save(1, KEYS, tensors(1.0), 0)
    older = (tmp_path / "users.sqlite").read_bytes()
    store.save(2, KEYS, tensors(2.0), 0)
    assert values(store, 9)[0] == 2.0
    (tmp_path / "users.sqlite").write_bytes(older)
    with pytest.raises(StoreError, match="was replaced by another while it was in use"):
        store.load(KEYS, 9)


def test_a_rollback_forgets_what_came_later(store: PrivateStore) -> None:
    for round in (1, 3, 5):
        store.save(round, KEYS, tensors(float(round)), 0)
    store.rollback(3)
    assert values(store, 100)[0] == 3.0
    store.rollback(0)
    assert values(store, 100) == [None] * 4


def test_two_runs_in_one_file_are_apart(store: PrivateStore, tmp_path: Path) -> None:
    other = PrivateStore(tmp_path, "other", SPEC)
    store.save(1, KEYS, tensors(1.0), 0)
    other.save(1, KEYS, tensors(2.0), 0)
    other.save(5, KEYS, tensors(3.0), checkpoint_round=5)
    assert values(store, 9)[0] == 1.0
    other.rollback(0)
    assert values(other, 9) == [None] * 4
    assert values(store, 9)[0] == 1.0


def test_a_new_process_goes_on(store: PrivateStore, tmp_path: Path) -> None:
    store.save(1, KEYS, tensors(1.0), 0)
    assert values(PrivateStore(tmp_path, "r", SPEC), 2) == [1.0, 2.0, 3.0, 4.0]


def test_more_users_than_one_query_takes(store: PrivateStore) -> None:
    keys = np.random.default_rng(0).integers(0, 2**64, 1234, dtype=np.uint64)
    store.save(1, keys, tensors(0.0, 1234), 0)
    assert values(store, 2, keys[::-1].copy()) == [float(number) for number in reversed(range(1234))]


def test_saving_nobody_is_nothing(store: PrivateStore) -> None:
    """All chosen users of a node may have been dropped."""
    store.save(1, KEYS[:0], tensors(0.0, 0), 0)
    assert values(store, 2) == [None] * 4


def test_users_without_private_tensors(tmp_path: Path) -> None:
    store = PrivateStore(tmp_path, "r", {})
    store.save(1, KEYS[:2], {}, 0)
    assert store.load(KEYS, 2)[1].tolist() == [True, True, False, False]
    empty = PrivateStore(tmp_path, "empty", {"none": TensorSpec((0,)), "user": TensorSpec((1,))})
    empty.save(1, KEYS, {"none": torch.zeros(4, 0), "user": torch.ones(4, 1)}, 0)
    assert values(empty, 2) == [1.0] * 4


def test_another_width_is_named(store: PrivateStore, tmp_path: Path) -> None:
    store.save(1, KEYS, tensors(1.0), 0)
    wider = PrivateStore(tmp_path, "r", {**SPEC, "user": TensorSpec((4,))})
    with pytest.raises(StoreError, match=r"holds 36 bytes for a user of run r, the backbone needs 40: .*another"):
        wider.load(KEYS, 2)


@pytest.mark.parametrize("damage", ["noise", "truncated", "half a page", "text"])
def test_a_damaged_file_is_said_to_be_damaged(tmp_path: Path, damage: str) -> None:
    store = PrivateStore(tmp_path, "r", SPEC)
    keys = np.arange(2000, dtype=np.uint64)
    store.save(1, keys, tensors(0.0, 2000), 0)
    path = tmp_path / "users.sqlite"
    for log in tmp_path.glob("users.sqlite-*"):
        log.unlink()
    good = path.read_bytes()
    assert len(good) > 3 * 4096
    noise = np.random.default_rng(0).bytes(len(good))
    path.write_bytes(
        {"noise": noise, "truncated": good[: len(good) // 2], "half a page": good[:2000], "text": b"hello" * 999}[
            damage
        ]
    )
    with pytest.raises(StoreError, match=r"users.sqlite cannot be used .*move it away and its users start anew"):
        PrivateStore(tmp_path, "r", SPEC, synced=False).load(keys, 2)
    broken = path.read_bytes()
    losses: Counter[str] = Counter()
    store = PrivateStore(tmp_path, "r", SPEC, losses=losses)
    assert not store.load(keys, 2)[1].any(), "on a device its users start anew"
    store.save(2, keys, tensors(0.0, 2000), 0)
    assert PrivateStore(tmp_path, "r", SPEC).load(keys, 3)[1].all()
    assert (tmp_path / "users.sqlite.damaged-1").read_bytes() == broken, "and the broken file is kept"
    assert losses == {"store_damaged": 1}


@pytest.mark.parametrize("synced", [True, False])
def test_a_bit_that_has_turned_in_somebodys_numbers_is_noticed(
    tmp_path: Path, synced: bool, caplog: pytest.LogCaptureFixture
) -> None:
    keys = np.arange(40, dtype=np.uint64)
    spec: Spec = {"user": TensorSpec((64,))}
    PrivateStore(tmp_path, "r", spec, synced=synced).save(1, keys, {"user": torch.full((40, 64), 0.7)}, 0)
    close_file(tmp_path / "users.sqlite", synced)
    content = bytearray((tmp_path / "users.sqlite").read_bytes())
    number = np.float32(0.7).tobytes() * 2
    content[content.index(number) + 3] ^= 64
    (tmp_path / "users.sqlite").write_bytes(content)
    store = PrivateStore(tmp_path, "r", spec, synced=synced)
    if not synced:
        with pytest.raises(StoreError, match="another checksum"):
            store.load(keys, 2)
        return
    assert not store.load(keys, 2)[1].any()
    assert "another checksum than when it was written" in caplog.text
    assert "kept as users.sqlite.damaged-1, and its users start anew" in caplog.text


def test_a_store_of_another_version_is_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "users.sqlite") as file:
        file.execute("CREATE TABLE piece (number INTEGER)")
    with pytest.raises(StoreError, match="another version of fedrec"):
        PrivateStore(tmp_path, "r", SPEC)
    assert [path.name for path in tmp_path.glob("users.sqlite.*")] == []


def test_a_state_dir_that_cannot_be_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StoreError, match="cannot be made"):
            PrivateStore(place, "r", SPEC)
    (tmp_path / "users.sqlite").mkdir()
    with pytest.raises(StoreError, match="cannot be used"):
        PrivateStore(tmp_path, "r", SPEC)


WRITER = """
import sys
import numpy as np, torch
from pathlib import Path
from client_app.stores.store import PrivateStore
from fedrec.core.tensors import TensorSpec

folder, first, rounds, synced = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "True"
print("ready", flush=True)
sys.stdin.readline()
store = PrivateStore(Path(folder), "r", {"user": TensorSpec((64,))}, synced=synced)
keys = np.arange(first, first + 500, dtype=np.uint64)
for round in range(1, rounds + 1):
    store.save(round, keys, {"user": torch.full((500, 64), float(round))}, checkpoint_round=round)
    print(round, flush=True)
"""
WIDE: Spec = {"user": TensorSpec((64,))}


def writer(folder: Path, first: int, rounds: int, synced: bool = True) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), str(first), str(rounds), str(synced)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.mark.parametrize("synced", [True, False])
def test_two_processes_write_at_once_and_one_is_killed(tmp_path: Path, synced: bool) -> None:
    """Both are the first to open the store; a kill in the midst of a write leaves the last whole round."""
    steady, doomed = writer(tmp_path, 0, 15, synced), writer(tmp_path, 10_000, 10**9, synced)
    go(steady)
    go(doomed)
    assert doomed.stdout is not None
    for _ in range(5):
        doomed.stdout.readline()
    time.sleep(0.003)
    doomed.send_signal(signal.SIGKILL)
    told = [line for line in doomed.communicate()[0].split() if line]
    assert steady.communicate(timeout=30)[0].split() == [str(round) for round in range(1, 16)]
    assert steady.returncode == 0
    store = PrivateStore(tmp_path, "r", WIDE)
    mine, found = store.load(np.arange(500, dtype=np.uint64), 10**6)
    assert found.all()
    assert mine["user"].unique().tolist() == [15.0]
    theirs, found = store.load(np.arange(10_000, 10_500, dtype=np.uint64), 10**6)
    assert found.all()
    rounds = theirs["user"].unique().tolist()
    assert len(rounds) == 1, "a round is written for all of its users or for none"
    assert rounds[0] >= max([5, *map(int, told)]), "what was said to be written is there"
    store.save(10**5, np.arange(10_000, 10_500, dtype=np.uint64), {"user": torch.zeros(500, 64)}, 0)
