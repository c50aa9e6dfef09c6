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
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Predicate

from fedrec.core.errors import PolicyError, StoreError
from fedrec.core.owned import own_folder
from fedrec.core.whole_files import PART, sync, write_text

if TYPE_CHECKING:
    from pydantic import TypeAdapter

log = logging.getLogger("fedrec")

FOLDER = "secure"
ORDER = ("announce", "share", "train", "unmask")
"""The stages, in order."""


def _is_hex(text: str) -> bool:
    try:
        bytes.fromhex(text)
    except ValueError:
        return False
    return True


Hex = Annotated[str, Predicate(_is_hex)]
"""Bytes in hexadecimal digits."""


@dataclass(frozen=True)
class Remembered:
    """Of one secure sum. What a later stage brings is empty before it.

    Attributes:
        phase: Of the run.
        round: Of the run.
        resumes: How often the run had been resumed.
        stage: The last stage that was answered.
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

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid", "strict": True}

    phase: int
    round: int
    resumes: int
    stage: str = ""
    asked: Hex = ""
    slots: tuple[int, ...] = ()
    channel: Hex = ""
    mask: Hex = ""
    own: Hex = ""
    opening: tuple[Hex, ...] = ()
    announced: Hex = ""
    roll: Hex = ""
    users: tuple[int, ...] = ()
    neighbours: tuple[Hex, ...] = ()
    held: tuple[Hex, ...] = ()
    present: tuple[int, ...] = ()
    answer: Hex = ""

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
        from pydantic import ValidationError

        try:
            return _reader().validate_json(self._record.read_bytes())
        except FileNotFoundError:
            return Remembered.NOTHING
        except OSError as error:
            why = str(error)
        except ValidationError as error:  # whose own text has a part of what was read
            why = "; ".join(f"{'.'.join(map(str, part['loc']))}: {part['msg']}" for part in error.errors()[:3])
        raise StoreError(
            f"{self._record} cannot be read ({why}), and without it nobody knows of which rounds' sums this node was a "
            "part: it is in none. If the server is trusted not to ask for one of them again, remove the file"
        )

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
            if round <= found.round:
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
        """Delete the secrets and the answer, if there are any: the run is over, or another one is joined.

        Nothing else depends on it: where it fails, the log says so.
        """
        for delete in (self._drop_parts, self._drop_secrets):
            try:
                delete()
            except (OSError, StoreError) as error:
                log.warning("secrets of a sum in %s could not be deleted: %s", self._folder, error)

    def _drop_secrets(self) -> None:
        found = self.remembered()
        if found in (Remembered.NOTHING, found.closed()):
            return
        try:
            self._write(found.closed())
        except OSError:  # there may be no room for another file, and this one gets shorter
            self._overwrite(found.closed())

    def _write(self, kept: Remembered) -> None:
        own_folder(self._folder)
        self._drop_parts()
        write_text(self._record, _text(kept), private=True, synced=self._synced)

    def _overwrite(self, kept: Remembered) -> None:
        """Write over the old record. A crash may leave one that cannot be read: then the node is in no sum."""
        with self._record.open("r+b") as file:
            file.write(_text(kept).encode())
            file.truncate()
        if self._synced:
            sync(self._record)

    def _drop_parts(self) -> None:
        """Delete what a killed process has left half written: it has secrets, too."""
        for path in self._folder.glob(f"*{PART}"):
            path.unlink(missing_ok=True)


@cache
def _reader() -> TypeAdapter[Remembered]:
    """Made once: it takes longer than what it reads."""
    from pydantic import TypeAdapter

    return TypeAdapter(Remembered)


def _text(kept: Remembered) -> str:
    return json.dumps(vars(kept))


def forget_other_runs(state_dir: Path, joined: str) -> None:
    """Delete the secrets of other runs than this one; in which rounds' sums the node was stays known."""
    for folder in (state_dir / FOLDER).glob("*/*"):
        if folder.parent.name != joined:
            StageStore(state_dir, folder.parent.name, folder.name, synced=True).close()
