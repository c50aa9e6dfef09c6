"""What a node must remember between the stages of a secure sum: its secrets, whom it deals with, and its last answer.

A site's process ends with every message, so this is on its disk, readable by its owner alone, until it has told the
shares that it is asked for; then the secrets are deleted. What is kept says how far the node has come in which round: a
stage is answered once, the same question gets the same answer again, and another one gets none. So two different sums
never have the same update under the same masks.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fedrec.core.errors import PolicyError, StoreError
from fedrec.core.owned import own_folder
from fedrec.core.whole_files import write_bytes, write_text

FOLDER = "secure"
ORDER = ("announce", "share", "train", "unmask")
"""The stages, in order."""


@dataclass(frozen=True)
class Remembered:
    """Of one secure sum; bytes in hexadecimal digits. What a later stage brings is empty before it.

    Attributes:
        phase: Of the run.
        round: Of the run.
        resumes: How often the run had been resumed.
        stage: The last stage that was answered; empty: none of this round.
        asked: Digest of what that stage was asked.
        slots: The users who were asked for.
        channel, mask, own: The seeds; empty when they have been deleted, `channel` as soon as the keys of it are known.
        opening: The keys of what the neighbours seal for it.
        announced: What the node has announced.
        roll: A line of each participant.
        users: How many users each was asked for.
        neighbours: What each neighbour has announced.
        held: A pair of shares of each neighbour; empty for one that sent none that can be read.
        present: Which neighbours have sent shares.
    """

    phase: int
    round: int
    resumes: int
    stage: str = ""
    asked: str = ""
    slots: Sequence[int] = ()
    channel: str = ""
    mask: str = ""
    own: str = ""
    opening: Sequence[str] = ()
    announced: str = ""
    roll: str = ""
    users: Sequence[int] = ()
    neighbours: Sequence[str] = ()
    held: Sequence[str] = ()
    present: Sequence[int] = ()

    NOTHING: ClassVar[Remembered]

    def without_secrets(self) -> Remembered:
        """What is left when no share need be told any more."""
        return dataclasses.replace(self, channel="", mask="", own="", opening=(), held=())


Remembered.NOTHING = Remembered(0, 0, 0)


class StageStore:
    """One node's, in one run."""

    def __init__(self, state_dir: Path, run_key: str, name: str, *, synced: bool) -> None:
        """In a folder of a state-dir; `synced`: what is kept must survive a power failure."""
        self._folder = state_dir / FOLDER / run_key / name
        self._synced = synced

    @property
    def _record(self) -> Path:
        return self._folder / "record.json"

    @property
    def _answer(self) -> Path:
        return self._folder / "answer"

    def remembered(self) -> Remembered:
        """What there is. Raises StoreError if it cannot be read."""
        try:
            return Remembered(**json.loads(self._record.read_text(encoding="ascii")))
        except FileNotFoundError:
            return Remembered.NOTHING
        except (OSError, ValueError, TypeError) as error:
            raise StoreError(
                f"{self._record} cannot be read ({error}): remove it, and this node takes part again from the next "
                "round on"
            ) from error

    def begun(self, stage: str, phase: int, round: int, asked: bytes) -> tuple[Remembered, bytes | None]:
        """What is remembered when a stage is asked for; and its answer, if it was asked the very same before.

        Raises PolicyError if it is asked something else a second time, or out of turn.
        """
        found, digest = self.remembered(), hashlib.sha256(asked).hexdigest()
        here = (found.phase, found.round) == (phase, round)
        if here and found.stage == stage:
            if found.asked != digest:
                raise PolicyError(f"round {round}: {stage} was asked for, and answered, with another content before")
            return found, self._answer.read_bytes()
        if stage == ORDER[0]:
            if round <= found.round and not (here and not found.stage):
                raise PolicyError(
                    f"round {round}: this node was in the secure sum of round {found.round} already, and is in no "
                    "second one of that or an earlier round"
                )
            return Remembered(phase, round, found.resumes), None
        if not here or found.stage != ORDER[ORDER.index(stage) - 1]:
            raise PolicyError(f"round {round}: {stage} was asked for out of turn, after {found.stage or 'nothing'}")
        return found, None

    def answered(self, stage: str, asked: bytes, found: Remembered, answer: bytes) -> bytes:
        """Keep what is to be remembered after a stage, and its answer; the answer."""
        kept = dataclasses.replace(found, stage=stage, asked=hashlib.sha256(asked).hexdigest())
        own_folder(self._folder)
        write_bytes(self._answer, answer, private=True, synced=self._synced)
        self._write(kept)
        return answer

    def resume(self, resumes: Sequence[int]) -> None:
        """Follow a run that was resumed, after these rounds: what it does again may be masked again."""
        found = self.remembered()
        if len(resumes) > found.resumes and found != Remembered.NOTHING:
            (self._answer).unlink(missing_ok=True)
            self._write(Remembered(found.phase, min(found.round, resumes[-1]), len(resumes), stage=ORDER[-1]))

    def _write(self, kept: Remembered) -> None:
        write_text(self._record, json.dumps(dataclasses.asdict(kept)), private=True, synced=self._synced)


def forget_other_runs(state_dir: Path, joined: str) -> None:
    """Delete what other runs than this one have left. Raises OSError."""
    folder = state_dir / FOLDER
    for other in folder.iterdir() if folder.is_dir() else ():
        if other.name != joined:
            shutil.rmtree(other)
