"""A secret in a file that only its owner may read: the root of a site or server, made once."""

from __future__ import annotations

import secrets
from contextlib import suppress
from pathlib import Path

from fedrec.core.disk import mend, reason
from fedrec.core.errors import StoreError
from fedrec.core.whole_files import write_text

_BYTES = 32
_OTHERS = 0o077


def own_secret(folder: Path) -> int:
    """The secret in `<folder>/secret`. Raises StoreError as `own_bytes` does."""
    return int.from_bytes(own_bytes(folder, "secret", "its users start anew under other keys"), "little")


def own_bytes(folder: Path, name: str, anew: str) -> bytes:
    """32 secret bytes in `<folder>/<name>`, made if there are none: whole or not at all, for their owner's eyes alone.

    Raises StoreError if they cannot be made, others may read them, or they are not what was written.

    Args:
        folder: Where the file is.
        name: Of the file.
        anew: What follows if it is removed, and made anew.
    """
    path = folder / name
    try:
        if not path.exists():
            _make(path)
        mode, text = path.stat().st_mode, path.read_text(encoding="ascii", errors="replace").strip()
    except OSError as error:
        elsewhere = "give a folder on a disk that only the owner of this process may write"
        raise StoreError(
            f"the secret {path} cannot be read or made ({reason(error)}): {mend(error, elsewhere)}"
        ) from error
    return _checked(path, mode, text, anew)


def _checked(path: Path, mode: int, text: str, anew: str) -> bytes:
    """The bytes that a file of hexadecimal digits stands for. Raises StoreError, which says how to mend it."""
    if mode & _OTHERS:
        raise StoreError(f"the secret {path} may be read by others (mode {mode & 0o777:o}): chmod 600 {path}")
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != _BYTES:
        raise StoreError(
            f"the secret {path} should hold {2 * _BYTES} hexadecimal digits, it holds {len(text)} characters: put the "
            f"file back from a copy, or remove it, and {anew}"
        )
    return value


def _make(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with suppress(FileExistsError):  # another process was faster: its secret counts
        write_text(path, secrets.token_hex(_BYTES) + "\n", private=True, synced=True, first=True)
