"""What was sent once is kept whole, or counts as missing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from client_app.stores import frozen
from client_app.stores.frozen import FrozenStore, Since
from fedrec.core.errors import PacketError, StoreError
from fedrec.core.tensors import Tensors, content_digest

TENSORS: Tensors = {"base": torch.arange(12.0).reshape(4, 3), "codes": torch.tensor([1, 2], dtype=torch.uint8)}
DIGEST = content_digest(TENSORS)


@pytest.fixture
def store(tmp_path: Path) -> FrozenStore:
    restart()
    return FrozenStore(tmp_path)


def file(tmp_path: Path) -> Path:
    return tmp_path / "frozen" / f"{DIGEST}.safetensors"


def restart() -> None:
    """A new process has read nothing yet."""
    frozen._load.cache_clear()
    frozen._mark_as_used.cache_clear()


def assert_kept(store: FrozenStore) -> None:
    kept = store.get(DIGEST)
    assert kept is not None
    assert content_digest(kept) == DIGEST
    assert kept["codes"].dtype == torch.uint8


def test_what_was_put_is_there_also_after_a_restart(store: FrozenStore, tmp_path: Path) -> None:
    assert store.get(DIGEST) is None
    store.put(TENSORS, DIGEST)
    assert_kept(store)
    restart()
    assert_kept(FrozenStore(tmp_path))
    assert [path.name for path in (tmp_path / "frozen").iterdir()] == [f"{DIGEST}.safetensors"]


def test_nodes_of_one_worker_share_the_tensors(store: FrozenStore, tmp_path: Path) -> None:
    store.put(TENSORS, DIGEST)
    assert store.get(DIGEST) is FrozenStore(tmp_path).get(DIGEST)


@pytest.mark.parametrize("digest", ["0" * 32, "", "../outside", "/tmp/outside", DIGEST.upper(), DIGEST[:-1]])
def test_content_of_another_name_is_refused_and_nothing_written(
    store: FrozenStore, tmp_path: Path, digest: str
) -> None:
    with pytest.raises(PacketError, match="have another content") as caught:
        store.put(TENSORS, digest)
    assert caught.value.reason == "malformed"
    assert not list((tmp_path / "frozen").iterdir())
    assert store.get(digest) is None


@pytest.mark.parametrize("damage", ["truncated", "empty", "one bit", "noise", "another's", "text"])
def test_a_damaged_file_counts_as_missing_and_is_replaced(store: FrozenStore, tmp_path: Path, damage: str) -> None:
    store.put(TENSORS, DIGEST)
    path = file(tmp_path)
    good = path.read_bytes()
    store.put({"x": torch.ones(2)}, other := content_digest({"x": torch.ones(2)}))
    bent = bytearray(good)
    bent[-1] ^= 1
    path.write_bytes(
        {
            "truncated": good[:-5],
            "empty": b"",
            "one bit": bytes(bent),
            "noise": bytes(range(256)) * 3,
            "another's": (path.parent / f"{other}.safetensors").read_bytes(),
            "text": b"{" * 50,
        }[damage]
    )
    restart()
    assert store.get(DIGEST) is None
    store.put(TENSORS, DIGEST)
    assert path.read_bytes() == good
    assert_kept(store)


def test_a_sound_file_is_not_written_again(store: FrozenStore, tmp_path: Path) -> None:
    store.put(TENSORS, DIGEST)
    before = file(tmp_path).stat()
    restart()
    store.put(TENSORS, DIGEST)
    assert file(tmp_path).stat().st_ino == before.st_ino


def test_a_file_that_vanished_is_asked_for_again(store: FrozenStore, tmp_path: Path) -> None:
    store.put(TENSORS, DIGEST)
    assert_kept(store)
    file(tmp_path).unlink()
    assert store.get(DIGEST) is None


def test_a_write_that_breaks_off_leaves_no_file_of_that_name(
    store: FrozenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name appears with the whole content or not at all, whatever lay there before stays."""

    def half(tensors: Tensors, path: str, metadata: dict[str, str]) -> None:
        Path(path).write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(frozen, "save_file", half)
        with pytest.raises(StoreError, match=r"state-dir .* cannot be written \(No space left .*: make room"):
            store.put(TENSORS, DIGEST)
    assert store.get(DIGEST) is None
    assert not list((tmp_path / "frozen").iterdir()), "nothing half-written is left behind"
    store.put(TENSORS, DIGEST)
    assert_kept(store)


# Versions of a base table --------------------------------------------------------------------------------------------

CHAIN = [f"{number:064x}" for number in range(6)]


def table(number: int) -> Tensors:
    return {"base": torch.full((4, 3), float(number))}


def put(store: FrozenStore, number: int, round: int, run_key: str = "r") -> None:
    store.put(table(number), CHAIN[number], content_digest(table(number)), Since(run_key, round))


def versions(store: FrozenStore) -> list[int]:
    return [number for number, name in enumerate(CHAIN) if store.get(name) is not None]


def test_a_version_is_kept_under_its_name_and_checked_by_its_content(store: FrozenStore, tmp_path: Path) -> None:
    put(store, 1, 5)
    restart()
    kept = store.get(CHAIN[1])
    assert kept is not None
    assert torch.equal(kept["base"], table(1)["base"])
    put(store, 2, 6)
    folder = tmp_path / "frozen"
    (folder / f"{CHAIN[1]}.safetensors").write_bytes((folder / f"{CHAIN[2]}.safetensors").read_bytes())
    restart()
    assert versions(store) == [2], "another version in its place counts as missing"


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "", DIGEST, "g" * 64, CHAIN[1] + "/x"])
def test_a_name_that_is_no_versions_is_refused_and_nothing_written(
    store: FrozenStore, tmp_path: Path, name: str
) -> None:
    """It comes over the network, and would be that of a file."""
    with pytest.raises(PacketError, match=r"of a name that is no version's|have another content"):
        store.put(table(1), name, content_digest(table(1)) if name else "", Since("r", 1))
    assert not list((tmp_path / "frozen").iterdir())


def test_versions_that_nothing_can_ask_for_are_dropped(store: FrozenStore) -> None:
    store.put(TENSORS, DIGEST)
    for number, round in enumerate((0, 4, 6, 8, 10)):
        put(store, number, round)
    assert store.drop("r", 3, CHAIN[4]) == 0, "a rollback to round 3 needs the first"
    assert store.drop("r", 7, CHAIN[4]) == 2
    assert versions(store) == [2, 3, 4], "that of round 6 was in force after round 7"
    assert store.drop("another run", 99, CHAIN[4]) == 0
    assert store.drop("r", 8, CHAIN[2]) == 0, "the present one stays, whatever else is here"
    assert store.drop("r", 99, CHAIN[4]) == 2
    assert versions(store) == [4]
    assert_kept(store)


# What was not used for a long time -----------------------------------------------------------------------------------


def age(tmp_path: Path) -> None:
    """Everything was last written or read in 2001."""
    for path in (tmp_path / "frozen").iterdir():
        os.utime(path, (1e9, 1e9))


def test_what_was_not_used_for_a_long_time_is_dropped(store: FrozenStore, tmp_path: Path) -> None:
    store.put(TENSORS, DIGEST)
    put(store, 1, 5)
    put(store, 2, 6)
    (tmp_path / "frozen" / "tmp1.part").write_bytes(b"left by a process that was killed")
    age(tmp_path)
    put(store, 3, 7)
    assert store.drop_unused({CHAIN[1]}, before=1.1e9) == 3
    assert store.get(DIGEST) is None
    assert versions(store) == [1, 3], "one is kept by its name, the other is new"
    assert store.drop_unused({CHAIN[1]}, before=1.1e9) == 0
    assert len(list((tmp_path / "frozen").iterdir())) == 2


def test_what_was_read_was_used(store: FrozenStore, tmp_path: Path) -> None:
    store.put(TENSORS, DIGEST)
    age(tmp_path)
    restart()
    assert_kept(store)
    assert store.drop_unused((), before=1.1e9) == 0
    age(tmp_path)
    frozen._load.cache_clear()
    assert_kept(store)
    assert file(tmp_path).stat().st_mtime == 1e9, "once per process is enough"


def test_a_disk_that_cannot_be_written_to_can_be_read(store: FrozenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(path)

    store.put(TENSORS, DIGEST)
    restart()
    monkeypatch.setattr(os, "utime", refuse)
    assert_kept(store)
