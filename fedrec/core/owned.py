"""Folders and files that nobody but their owner may look into."""

from __future__ import annotations

import logging
import os
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
