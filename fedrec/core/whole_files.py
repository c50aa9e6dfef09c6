"""Files that appear whole or not at all: written beside their place under another name, then renamed.

A killed process, a full disk or another process that writes the same file leaves what was there before.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PART = ".part"
"""How the name of a file ends that is being written, or that a killed process has left half written."""


@contextmanager
def replaced(path: Path, *, private: bool = False, synced: bool = False, first: bool = False) -> Iterator[Path]:
    """A path to write to; the file stands at `path` when the block has ended without an error.

    Args:
        path: Where the file is to be; its folder must be there.
        private: Only its owner may read it. Otherwise the account's umask says who may.
        synced: Whether content and name are on the disk itself afterwards, and would be there after a power failure.
        first: Never take the place of a file that is there.

    Raises:
        FileExistsError: With `first`: there is one already, perhaps since a moment ago.
        OSError: The disk refuses the file.
    """
    started = path.with_name(f"{path.name}.{secrets.token_hex(4)}{PART}")
    try:
        mode = _made(started, 0o600 if private else 0o666)
        yield started
        if started.stat().st_mode & 0o777 != mode:  # what wrote it has put a file of its own there
            started.chmod(mode)
        if synced:
            sync(started)
        if first:
            os.link(started, path)
            started.unlink()
        else:
            started.replace(path)
        if synced:
            sync(path.parent)
    except BaseException:
        with suppress(OSError):
            started.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, *parts: bytes, private: bool = False, synced: bool = False, first: bool = False) -> None:
    """Write a whole file, as `replaced` does."""
    with replaced(path, private=private, synced=synced, first=first) as started, started.open("wb") as file:
        for part in parts:
            file.write(part)


def write_text(path: Path, text: str, *, private: bool = False, synced: bool = False, first: bool = False) -> None:
    """Write a whole file of text in UTF-8, as `replaced` does."""
    write_bytes(path, text.encode(), private=private, synced=synced, first=first)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, have reached the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _made(path: Path, mode: int) -> int:
    """Make an empty file, and return the mode that the umask has left it."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        return os.fstat(handle).st_mode & 0o777
    finally:
        os.close(handle)
