"""The checkpoints of a run on the disk: written whole, the newest few kept, and read again only if they are sound.

round-000100.safetensors   everything that is tensors
round-000100.json          where the run stands, and the digest of the other file
"""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path

from safetensors.torch import load, save_file

from federation.checkpoint import Checkpoint
from fedrec.core.disk import DAMAGE, DENIED, number, reading, reason
from fedrec.core.errors import StoreError
from fedrec.core.strict_json import json_line, parsed_object
from fedrec.core.whole_files import PART, replaced, write_text

log = logging.getLogger("fedrec")

_DIGEST = "digest"
_RESTORE = "restore the folder from a copy, or start a new run"
_FILE = re.compile(r"round-\d{6,}\.json")


class Checkpoints:
    """The checkpoints in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint; the JSON file comes last.

        When this returns, the checkpoint is on the disk itself, and would be there after a power failure. Raises
        OSError, or safetensors' own error, if the disk refuses it; an earlier checkpoint of the round is then whole or
        damaged, and the earlier ones are as they were.
        """
        name = _name(checkpoint.round)
        with replaced(self._folder / f"{name}.safetensors", synced=True) as started:
            save_file(checkpoint.tensors(), started)
            facts = {**checkpoint.facts(), _DIGEST: _digest(started.read_bytes())}
        write_text(self._folder / f"{name}.json", json_line(facts) + "\n", synced=True)

    def prune(self, round: int, kept: int) -> None:
        """Delete the checkpoints before `round`, which has been written, but for the newest `kept - 1`.

        A checkpoint that is half there, because a run was killed at that moment, is deleted too.
        """
        whole = [name for name in self._names() if name < _name(round)]
        spared = {_name(round), *whole[max(0, len(whole) - kept + 1) :]}
        # The JSON file first: whoever finds it finds the tensors.
        for suffix in (".json", ".safetensors", PART):
            for path in sorted(self._folder.glob(f"round-*{suffix}")):
                name = path.name.partition(".")[0]
                if name <= _name(round) and (name not in spared or suffix == PART):
                    path.unlink()

    def after(self, round: int) -> Checkpoint:
        """The checkpoint of a round that is known to be there. Raises OSError, or what a damaged one raises."""
        return self._read(_name(round))

    def newest(self) -> tuple[Checkpoint | None, list[int]]:
        """The newest sound checkpoint, and what all kept ones up to it need (`Checkpoint.needs`); None without any.

        Damaged ones are named in the log and passed over. Raises StoreError if all of them are damaged, or one may not
        be read.
        """
        names = self._names()
        while names:
            try:
                newest = self._read(names[-1])
                return newest, [*map(self._needs, names[:-1]), newest.needs]
            except (OSError, *DAMAGE) as error:
                if number(error) in DENIED:  # it may be sound: to pass over it would lose what was good
                    with reading(f"the checkpoint {names[-1]} in {self._folder}", _RESTORE):
                        raise
                damaged = names.pop()
                log.warning("checkpoint %s is damaged and is passed over: %s", damaged, reason(error))
                if not names:
                    raise StoreError(
                        f"every checkpoint in {self._folder} is damaged (see the log above): the run cannot go on; "
                        f"{_RESTORE}"
                    ) from error
        return None, []

    def rounds(self) -> list[int]:
        """Rounds of all checkpoints that are there, sound or damaged, ascending. Raises StoreError."""
        return [int(name.removeprefix("round-")) for name in self._names()]

    def _needs(self, name: str) -> int:
        """What a checkpoint needs, sound or not; all rounds, if that cannot be told."""
        try:
            facts = parsed_object((self._folder / f"{name}.json").read_text(encoding="utf-8"))
            return int((facts.get("best") or facts)["round"])
        except (OSError, *DAMAGE):
            return 0

    def _read(self, name: str) -> Checkpoint:
        facts = parsed_object((self._folder / f"{name}.json").read_text(encoding="utf-8"))
        content = (self._folder / f"{name}.safetensors").read_bytes()
        if (found := _digest(content)) != facts[_DIGEST]:
            raise ValueError(f"its {len(content)} bytes have the digest {found}, expected {facts[_DIGEST]}")
        checkpoint = Checkpoint.restored(load(content), facts)
        if _name(checkpoint.round) != name:
            raise ValueError(f"it says that it is of round {checkpoint.round}")
        return checkpoint

    def _names(self) -> list[str]:
        with reading(f"the folder {self._folder}", _RESTORE):
            return sorted(path.stem for path in self._folder.iterdir() if _FILE.fullmatch(path.name))


def _name(round: int) -> str:
    return f"round-{round:06d}"


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
