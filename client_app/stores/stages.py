"""What a node must remember between the stages of a secure sum: its secrets, whom it deals with, and its last answer.

A site's process ends with every message, so this is on its disk, readable by its owner alone, until it has told the
shares that it is asked for; then the secrets are deleted. They are, too, when the run ends or another one is joined.
What is kept says how far the node has come in which round: a stage is answered once, the same question gets the same
answer again, and another one gets none. That stays when the run is over. Answer and record are one file, written at
once, so that no crash leaves the one without the other.

A run that was resumed has rounds again, in which users may give the same under other masks: the difference of the two
sums is then what the nodes gave that are in one of them alone. So a site that does not trust the server is not in a
round again whose training it has answered.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fedrec.core.errors import PolicyError, StoreError
from fedrec.core.owned import own_folder
from fedrec.core.whole_files import write_text

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
        answer: What the last stage was answered with.
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
    answer: str = ""

    NOTHING: ClassVar[Remembered]

    def without_secrets(self) -> Remembered:
        """What is left when no share need be told any more."""
        return dataclasses.replace(self, channel="", mask="", own="", opening=(), held=())

    def closed(self) -> Remembered:
        """What is left when nothing of this sum is answered any more."""
        return Remembered(self.phase, self.round, self.resumes, stage=ORDER[-1])


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

    def remembered(self) -> Remembered:
        """What there is. Raises StoreError if it cannot be read."""
        try:
            return Remembered(**json.loads(self._record.read_text(encoding="ascii")))
        except FileNotFoundError:
            return Remembered.NOTHING
        except (OSError, ValueError, TypeError) as error:
            raise StoreError(
                f"{self._record} cannot be read ({error}), and without it nobody knows of which rounds' sums this node "
                "was a part: it is in none. If the server is trusted not to ask for one of them again, remove the file"
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
            return found, bytes.fromhex(found.answer)
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
        digest = hashlib.sha256(asked).hexdigest()
        self._write(dataclasses.replace(found, stage=stage, asked=digest, answer=answer.hex()))
        return answer

    def resume(self, resumes: Sequence[int], *, again: bool) -> None:
        """Follow a run that was resumed, after these rounds.

        `again`: the node takes part in the rounds that are done again. If not, then only where nothing was trained.
        """
        found = self.remembered()
        if len(resumes) <= found.resumes:
            return
        trained = found.round - (found.stage in ORDER[:2])  # keys and shares alone say nothing of any user
        round = min(trained, resumes[-1]) if again else trained
        self._write(dataclasses.replace(found, round=round, resumes=len(resumes)).closed())

    def close(self) -> None:
        """Delete the secrets and the answer, if there are any: the run is over, or another one is joined."""
        found = self.remembered()
        if found not in (Remembered.NOTHING, found.closed()):
            self._write(found.closed())

    def _write(self, kept: Remembered) -> None:
        own_folder(self._folder)
        write_text(self._record, json.dumps(dataclasses.asdict(kept)), private=True, synced=self._synced)


def forget_other_runs(state_dir: Path, joined: str) -> None:
    """Delete the secrets of other runs than this one; in which rounds' sums the node was stays known.

    Raises OSError and StoreError.
    """
    for folder in (state_dir / FOLDER).glob("*/*"):
        if folder.parent.name != joined:
            StageStore(state_dir, folder.parent.name, folder.name, synced=True).close()
