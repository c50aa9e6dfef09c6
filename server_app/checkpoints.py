"""The checkpoints of a run on the disk: written whole, the newest few kept, and read again only if they are sound.

round-000100.safetensors   everything that is tensors
round-000100.json          where the run stands, and the digest of the other file
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save_file

from federation.checkpoint import Checkpoint
from fedrec.core.errors import StoreError

log = logging.getLogger("fedrec")

_DIGEST = "digest"


class Checkpoints:
    """The checkpoints in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint; the JSON file comes last.

        When this returns, the checkpoint is on the disk itself, and would be there after a power failure.
        """
        name = _name(checkpoint.round)
        temporary = self._folder / f"{name}.part"
        save_file(checkpoint.tensors(), temporary)
        facts = {**checkpoint.facts(), _DIGEST: _digest(temporary.read_bytes())}
        self._settle(temporary, f"{name}.safetensors")
        temporary.write_text(json.dumps(facts) + "\n", encoding="utf-8")
        self._settle(temporary, f"{name}.json")

    def prune(self, round: int, kept: int) -> None:
        """Delete the checkpoints before `round`, which has been written, but for the newest `kept - 1`.

        A checkpoint that is half there, because a run was killed at that moment, is deleted too.
        """
        whole = [name for name in self._names() if name < _name(round)]
        spared = {_name(round), *whole[max(0, len(whole) - kept + 1) :]}
        # The JSON file first: whoever finds it finds the tensors.
        for suffix in ("json", "safetensors", "part"):
            for path in sorted(self._folder.glob(f"round-*.{suffix}")):
                if path.stem <= _name(round) and path.stem not in spared:
                    path.unlink()

    def newest(self) -> tuple[Checkpoint | None, list[int]]:
        """The newest sound checkpoint, and the rounds of all kept ones up to it; None if none was ever written.

        Damaged ones are named in the log and passed over. Raises StoreError if all of them are damaged.
        """
        names = self._names()
        while names:
            try:
                return self._read(names[-1]), [int(name.removeprefix("round-")) for name in names]
            except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
                damaged = names.pop()
                log.warning("checkpoint %s is damaged and is passed over: %s", damaged, error)
                if not names:
                    raise StoreError(
                        f"every checkpoint in {self._folder} is damaged (see the log above): the run cannot go on; "
                        "restore the folder from a copy, or start a new run"
                    ) from error
        return None, []

    def _read(self, name: str) -> Checkpoint:
        facts = json.loads((self._folder / f"{name}.json").read_text(encoding="utf-8"))
        content = (self._folder / f"{name}.safetensors").read_bytes()
        if (found := _digest(content)) != facts[_DIGEST]:
            raise ValueError(f"its {len(content)} bytes have the digest {found}, expected {facts[_DIGEST]}")
        checkpoint = Checkpoint.restored(load(content), facts)
        if _name(checkpoint.round) != name:
            raise ValueError(f"it says that it is of round {checkpoint.round}")
        return checkpoint

    def _names(self) -> list[str]:
        return sorted(path.stem for path in self._folder.glob("round-*.json"))

    def _settle(self, temporary: Path, name: str) -> None:
        """Give a written file its name; content and name are on the disk when this returns."""
        sync(temporary)
        temporary.replace(self._folder / name)
        sync(self._folder)


def _name(round: int) -> str:
    return f"round-{round:06d}"


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, have reached the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
