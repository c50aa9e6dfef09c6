"""What a disk throws is said in the project's words, files appear whole or not at all, and JSON is JSON."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError

from fedrec.core.disk import is_of_the_disk, reading, writing
from fedrec.core.errors import StoreError
from fedrec.core.strict_json import json_line, json_page, number, parsed, parsed_object
from fedrec.core.whole_files import replaced, write_bytes, write_text
from fedrec.data.store import write_store
from fedrec.data.types import Interactions

FULL, DENIED = "make room on that disk, or go elsewhere", "change its permissions, or go elsewhere"
REFUSED = {
    "full": (OSError(errno.ENOSPC, "x", "/f"), f"(No space left on device): {FULL}"),
    "quota": (OSError(errno.EDQUOT, "x", "/f"), f"(Disk quota exceeded): {FULL}"),
    "too large": (OSError(errno.EFBIG, "x", "/f"), f"(File too large): {FULL}"),
    "denied": (PermissionError(errno.EACCES, "x", "/f"), f"(Permission denied): {DENIED}"),
    "read-only": (OSError(errno.EROFS, "x", "/f"), f"(Read-only file system): {DENIED}"),
    "failing": (OSError(errno.EIO, "x", "/f"), "(Input/output error): check the disk, or go elsewhere"),
    "in safetensors": (
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        f"(No space left on device): {FULL}",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_the_disk_refuses_says_what_why_and_how_to_mend_it(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: Path("/").stat().st_uid)
    error, said = REFUSED[kind]
    with pytest.raises(StoreError) as caught, writing("the run folder /r", "go elsewhere"):
        raise error
    assert str(caught.value) == f"the run folder /r cannot be written {said}"
    with pytest.raises(StoreError) as caught, reading("the file /r/f", "go elsewhere"):
        raise error
    assert str(caught.value) == f"the file /r/f cannot be read {said}"
    assert is_of_the_disk(error)


def test_a_file_of_another_account_is_said_to_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 12345)
    where = tmp_path / "not" / "there"
    with (
        pytest.raises(
            StoreError, match=rf"{tmp_path} belongs to \w+, and this process runs as the account \d+; change"
        ),
        writing("it", "go elsewhere"),
    ):
        raise PermissionError(errno.EACCES, "Permission denied", str(where))


DAMAGED = ["{", "[]", '{"a": NaN}', '{"a": Infinity}', "\x00", '{"b": 1}', "[" * 100_000]


@pytest.mark.parametrize("text", DAMAGED, ids=lambda text: text[:12])
def test_a_file_that_is_not_what_was_written_is_damaged(text: str) -> None:
    with (
        pytest.raises(StoreError, match=r"(?s)^x\.json is damaged \(.*\): restore it$"),
        reading("x.json", "restore it"),
    ):
        _ = parsed_object(text)["a"]


def test_a_file_that_is_gone_is_missing(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"^x\.json is missing: restore it$"), reading("x.json", "restore it"):
        (tmp_path / "x.json").read_text()


def test_a_bug_in_our_own_code_is_not_taken_for_the_disk() -> None:
    with pytest.raises(ZeroDivisionError), writing("it", "go elsewhere"), reading("it", "restore it"):
        _ = 1 / 0
    assert not is_of_the_disk(ValueError("x"))
    assert not is_of_the_disk(FileNotFoundError(errno.ENOENT, "x"))


def test_json_that_is_written_is_json() -> None:
    values = {"a": float("nan"), "b": [1.5, float("-inf"), (float("inf"), 2)], "c": {"d": "é"}}
    for text in (json_line(values), json_page(values), json_line(values, ascii_only=False)):
        assert parsed(text) == {"a": None, "b": [1.5, None, [None, 2]], "c": {"d": "é"}}
        assert "NaN" not in text
        assert "Infinity" not in text
    assert "\n" not in json_line(values)


@pytest.mark.parametrize("value", [None, "1", True, [1]])
def test_what_is_no_number_is_none(value: object) -> None:
    with pytest.raises(ValueError, match="expected a number"):
        number(value)


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.usefixtures("open_umask")
def test_the_umask_says_who_may_read_and_private_is_private(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "x")
    write_text(tmp_path / "b", "x", private=True)
    with replaced(tmp_path / "c") as started:  # as safetensors writes: a file of its own in that place
        started.unlink()
        os.close(os.open(started, os.O_CREAT | os.O_WRONLY, 0o600))
    assert [mode(tmp_path / name) for name in "abc"] == [0o666, 0o600, 0o666]
    os.umask(0o027)
    write_text(tmp_path / "a", "x")
    assert mode(tmp_path / "a") == 0o640


@pytest.mark.usefixtures("open_umask")
def test_a_cache_may_be_shared_and_a_site_keeps_its_own_to_itself(tmp_path: Path, small: Interactions) -> None:
    shared, own = write_store(small, tmp_path / "cache"), write_store(small, tmp_path / "site", private=True)
    assert (mode(shared), mode(own)) == (0o777, 0o700)
    assert {mode(path) for path in shared.iterdir()} == {0o666}


@pytest.fixture
def small() -> Interactions:
    return Interactions(("u",), np.array([0, 2], dtype=np.int64), np.array([1, 0], dtype=np.int32))


def test_a_write_that_breaks_off_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_bytes(path, b"before")

    def half() -> None:
        with replaced(path) as started:
            started.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert path.read_bytes() == b"before"
    assert [each.name for each in tmp_path.iterdir()] == ["f"]


def test_the_first_of_two_counts_where_that_is_asked_for(tmp_path: Path) -> None:
    write_text(tmp_path / "f", "first", first=True)
    with pytest.raises(FileExistsError):
        write_text(tmp_path / "f", "second", first=True)
    assert (tmp_path / "f").read_text() == "first"
    assert len(list(tmp_path.iterdir())) == 1


def test_nothing_else_in_the_project_renames_a_file_into_place() -> None:
    """One atomic write: a second one would know other rules."""
    root = Path(__file__).resolve().parents[1]
    packages = ("fedrec", "peft_embeddings", "strategies", "client_app", "server_app", "commands")
    sources = [path for package in packages for path in (root / package).rglob("*.py")]
    words = ("mkstemp", "NamedTemporaryFile", "os.replace", "os.rename")
    assert {path.name for path in sources for word in words if word in path.read_text(encoding="utf-8")} == set()
