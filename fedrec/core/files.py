"""Files that appear whole or not at all, and folders that nobody else may look into."""

from __future__ import annotations

import logging
import os
import tempfile
from contextlib import suppress
from pathlib import Path

log = logging.getLogger("fedrec")

_OTHERS = 0o077


def own_folder(path: Path) -> None:
    """Make a folder that its owner alone may look into, or make it so if it is there; then that is logged.

    Raises OSError if it cannot be made or is somebody else's.
    """
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    if (mode := path.stat().st_mode) & _OTHERS:
        path.chmod(0o700)
        log.warning("%s was open to others (mode %o): from now on its owner alone may look into it", path, mode & 0o777)


def own_file(path: Path) -> None:
    """Make an empty file that its owner alone may read, or make it so if it is there. Raises OSError."""
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    if path.stat().st_mode & _OTHERS:
        path.chmod(0o600)


def write_whole(path: Path, *parts: bytes) -> None:
    """Write a file in one step, readable by its owner alone; its folder is there. Raises OSError.

    A process that is killed leaves what was there before, and nobody ever reads a half.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")  # of mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            for part in parts:
                file.write(part)
        Path(temporary).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(temporary).unlink()
        raise
