"""Of which version the files of a state-dir are, and how an older one is brought to this version.

The number stands in `<state-dir>/layout`, and changes whenever another version of fedrec could not use, or would
misunderstand, what is there. A state-dir is made once and lives for years: its secret says who its users are, and its
ledgers what they have spent. So no version refuses an older one: each has a step to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from fedrec.core.disk import reading, writing
from fedrec.core.errors import StoreError
from fedrec.core.whole_files import write_text

LAYOUT = 1
"""Of this version."""

_FILE = "layout"


def _named(state_dir: Path) -> None:
    """What was made before state-dirs had a number is as in version 1."""


STEPS: Mapping[int, Callable[[Path], None]] = {0: _named}
"""From each version what makes it the next."""


def layout_of(state_dir: Path) -> int:
    """The version of a state-dir; 0 where none is written. Raises StoreError if what is written is no number."""
    path = state_dir / _FILE
    if not path.exists():
        return 0
    with reading(str(path), "put it back from a copy"):
        number = int(path.read_text(encoding="ascii"))
        if number < 0:
            raise ValueError("a version is no number below zero")
    return number


def require_layout(state_dir: Path) -> None:
    """Bring a state-dir to this version, step by step; each is written down when it is done.

    Raises StoreError if it is of a later version, or the disk refuses it.
    """
    version = layout_of(state_dir)
    if version > LAYOUT:
        raise StoreError(
            f"the state-dir {state_dir} was used by a later version of fedrec (its layout is {version}, this one knows "
            f"{LAYOUT}): install that version again"
        )
    with writing(f"the state-dir {state_dir}", "give the site another state-dir"):
        for number in range(version, LAYOUT):
            STEPS[number](state_dir)
            write_text(state_dir / _FILE, f"{number + 1}\n", private=True, synced=True)
