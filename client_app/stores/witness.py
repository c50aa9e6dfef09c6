"""A witness beside the users' store: that a run's private tensors were written there, and how far.

A store that was deleted, emptied, or put back from an older copy is a sound file, and all users would start anew
without a word. The witness is a file of its own, `<state_dir>/written/<run>.json`, and says which store it saw, and the
newest of the run's pieces there. It is written after the store: a process that is killed between the two leaves one
that says too little, never too much.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fedrec.core.tensors import text_digest
from fedrec.core.whole_files import write_bytes


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        token: Hexadecimal digits that name the run in the store in which it was begun.
        last: Number of the run's newest piece.
    """

    token: str
    last: int

    def covers(self, other: Written) -> bool:
        """Whether a store of which this is true still holds what the other says."""
        return self.token == other.token and self.last >= other.last


class Witness:
    """The witness of one run."""

    def __init__(self, state_dir: Path, run: str) -> None:
        """`run` is the run's key in the store."""
        self._path = state_dir / "written" / f"{text_digest(run)}.json"

    def read(self) -> Written | None:
        """What it says; None if it says nothing, or is damaged: it is only there to notice what is missing."""
        try:
            values = json.loads(self._path.read_text(encoding="ascii"))
            return Written(str(values["token"]), int(values["last"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, written: Written | None) -> None:
        """Say this from now on; None: nothing. Raises OSError."""
        if written is None:
            self._path.unlink(missing_ok=True)
        elif written != self.read():
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            write_bytes(self._path, json.dumps({"token": written.token, "last": written.last}).encode(), private=True)


def forget_witness(state_dir: Path, run: str) -> None:
    """The run's private tensors are about to be deleted."""
    with suppress(OSError):
        Witness(state_dir, run).write(None)
