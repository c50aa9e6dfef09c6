"""What a node keeps between the stages of a secure sum: the rounds of its sums for good, and no secret for too long."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections import Counter
from pathlib import Path

import pytest

from client_app.stores import stages
from client_app.stores.frozen import FrozenStore
from client_app.stores.old_runs import forget_old_runs
from client_app.stores.stages import Remembered, StageStore
from fedrec.core.errors import PolicyError, StoreError

SECRET = "5ec4e7" * 5


def store(state: Path, run: str = "r") -> StageStore:
    return StageStore(state, run, "site", synced=False)


def begin(state: Path, run: str = "r") -> Path:
    """A run in the midst of a sum; the record of it."""
    kept = Remembered(0, 1, 0, own=SECRET, opening=(SECRET,) * 9, slots=(1, 2))
    store(state, run).answered("train", b"", kept, b"x" * 99)
    return state / "secure" / run / "site" / "record.json"


def full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def test_what_is_kept_is_what_is_read(tmp_path: Path) -> None:
    begin(tmp_path)
    found = store(tmp_path).remembered()
    assert (found.own, found.opening, found.slots, found.stage) == (SECRET, (SECRET,) * 9, (1, 2), "train")
    store(tmp_path).close()
    assert store(tmp_path).remembered() == found.closed()


@pytest.mark.parametrize(
    "kept",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"phase": 0, "round": 1}',
        b'{"phase": 0, "round": "1", "resumes": 0}',
        b'{"phase": 0, "round": 1, "resumes": 0, "else": 1}',
        b'{"phase": 0, "round": 1, "resumes": 0, "held": 3}',
        b'{"phase": 0, "round": 1, "resumes": 0, "slots": ["1"]}',
        b'{"phase": 0, "round": 1, "resumes": 0, "own": "%s zz"}' % SECRET.encode(),
        b'{"phase": 0, "round": 1, "resumes": 0, "own": "%s' % SECRET.encode(),
    ],
)
def test_rubbish_on_disk_is_named_and_tells_no_secret(tmp_path: Path, kept: bytes) -> None:
    begin(tmp_path).write_bytes(kept)
    with pytest.raises(StoreError, match="remove the file") as caught:
        store(tmp_path).begun("announce", 0, 2, b"")
    assert SECRET not in str(caught.value)


def test_one_damaged_record_keeps_no_secrets_of_other_runs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for run in "abc":
        begin(tmp_path, run)
    damaged, *others = (tmp_path / "secure").glob("*/*")
    (damaged / "record.json").write_text("{")
    with caplog.at_level(logging.WARNING, "fedrec"):
        forget_old_runs(tmp_path, "joined", Counter())
    assert all(SECRET not in (folder / "record.json").read_text() for folder in others)
    assert str(damaged) in caplog.text, "and whose it is stands in the log"


@pytest.mark.parametrize("synced", [False, True])
def test_on_a_full_disk_secrets_are_deleted_and_the_sums_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, synced: bool
) -> None:
    path = begin(tmp_path)
    before = path.stat()
    monkeypatch.setattr(stages, "write_text", full)
    StageStore(tmp_path, "r", "site", synced=synced).close()
    assert SECRET not in path.read_text()
    assert path.stat().st_ino == before.st_ino, "in the place of the old one"
    assert store(tmp_path).remembered() == Remembered(0, 1, 0, stage="unmask")
    with pytest.raises(PolicyError, match="in no second one"):
        store(tmp_path).begun("announce", 0, 1, b"")


def test_a_half_written_file_that_cannot_be_deleted_keeps_no_secret_of_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = begin(tmp_path)
    monkeypatch.setattr(StageStore, "_drop_parts", full)
    with caplog.at_level(logging.WARNING, "fedrec"):
        store(tmp_path).close()
    assert SECRET not in path.read_text()
    assert str(path.parent) in caplog.text


def test_whatever_else_cannot_be_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(tmp_path)
    monkeypatch.setattr(FrozenStore, "drop_unused", full)
    forget_old_runs(tmp_path, "joined", Counter())
    assert store(tmp_path).remembered() == Remembered(0, 1, 0, stage="unmask")


@pytest.mark.parametrize("when", ["written", "closed", "forgotten"])
def test_what_a_killed_process_has_left_half_written_is_deleted(tmp_path: Path, when: str) -> None:
    path = begin(tmp_path)
    if when != "written":
        store(tmp_path).close()
    left = path.with_name("record.json.12345678.part")
    left.write_text(SECRET)
    if when == "written":
        begin(tmp_path)
    elif when == "closed":
        store(tmp_path).close()
    else:
        forget_old_runs(tmp_path, "joined", Counter())
    assert not left.exists()
    assert json.loads(path.read_text())["round"] == 1


@pytest.mark.parametrize(
    ("stage", "again", "open_from"),
    [("share", False, 6), ("train", False, 7), ("unmask", False, 7), ("train", True, 6), ("unmask", True, 6)],
)
def test_a_resumed_run_has_a_round_again_where_nothing_was_trained_or_the_server_is_trusted(
    tmp_path: Path, stage: str, again: bool, open_from: int
) -> None:
    kept = store(tmp_path)
    kept.answered(stage, b"", Remembered(1, 6, 0, own="00"), b"x")
    kept.resume([5], again=again)
    with pytest.raises(PolicyError, match="in no second one"):
        kept.begun("announce", 1, open_from - 1, b"")
    found, _ = kept.begun("announce", 1, open_from, b"")
    kept.answered("announce", b"", dataclasses.replace(found, own="00"), b"x")
    kept.resume([5], again=again)
    assert kept.remembered().own == "00", "to join again, with the same list, changes nothing"


def test_nor_does_one_have_a_round_twice_that_it_joins_when_it_was_resumed_already(tmp_path: Path) -> None:
    kept = store(tmp_path)
    kept.resume([5], again=True)
    kept.answered("unmask", b"", Remembered(1, 6, kept.remembered().resumes), b"x")
    kept.resume([5], again=True)
    with pytest.raises(PolicyError, match="in no second one"):
        kept.begun("announce", 1, 6, b"")
