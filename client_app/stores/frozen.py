"""What the server sends once: frozen tensors in files on the node's disk, each named by the digest of its content.

A base table into which something was merged is kept under the name of its version instead: another machine may have
rounded it differently. The digest of its content here is then written into the file.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from client_app.stores.losses import FROZEN_DAMAGED, Losses
from fedrec.core.disk import DAMAGE, writing
from fedrec.core.errors import PacketError
from fedrec.core.strict_json import json_line, parsed_object
from fedrec.core.tensors import Tensors, content_digest
from fedrec.core.whole_files import replaced

log = logging.getLogger("fedrec")

_ABOUT = "fedrec"
_ELSEWHERE = "give another state-dir (in a simulation, another runs_dir)"
_VERSION = re.compile("[0-9a-f]{64}")
_NAME = re.compile("[0-9a-f]{32}|[0-9a-f]{64}")


class Since(NamedTuple):
    """When frozen tensors came to be: in which run, and after which of its rounds (0: before the first)."""

    run_key: str
    round: int


class MissingFrozenError(Exception):
    """The node does not hold the frozen tensors that the message names; it asks for them instead of training."""

    def __init__(self, digest: str) -> None:
        self.digest = digest
        super().__init__(digest)


@dataclass(frozen=True)
class FrozenStore:
    """Files `<state_dir>/frozen/<name>.safetensors`; a damaged one counts as missing, and is asked for again."""

    state_dir: Path
    losses: Losses = field(default_factory=Counter, compare=False)
    """Where damage is counted."""
    _told: set[str] = field(default_factory=set, compare=False)

    def __post_init__(self) -> None:
        """Make the folder. Raises StoreError if the disk refuses it."""
        with writing(f"the state-dir {self.state_dir}", _ELSEWHERE):
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    @property
    def _folder(self) -> Path:
        return self.state_dir / "frozen"

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"

    def put(self, tensors: Tensors, name: str, content: str | None = None, since: Since | None = None) -> None:
        """Keep tensors under a name.

        Args:
            tensors: What is frozen.
            name: The digest of their content, or the name of a version of the base table.
            content: The digest of their content, if they have another name.
            since: For `drop`; None for what is never dropped.

        Raises:
            PacketError: `malformed`: the content has another digest, or the name is not that of a version.
            StoreError: The disk refuses the file.
        """
        content = content or name
        if content_digest(tensors) != content:
            raise PacketError("malformed", f"frozen tensors announced as {content} have another content")
        if name != content and not _VERSION.fullmatch(name):
            raise PacketError("malformed", f"frozen tensors of a name that is no version's: {name!r}")
        path = self._path(name)
        if path.exists() and _load(str(path), name) is not None:
            return
        written = {"name": name, "content": content, "since": since}
        with writing(f"the state-dir {self.state_dir}", _ELSEWHERE), replaced(path) as started:
            save_file(tensors, started, {_ABOUT: json_line(written)})
        _load.cache_clear()

    def get(self, name: str) -> Tensors | None:
        """The tensors of that name, or None if they are not here (or the file is damaged)."""
        if not _NAME.fullmatch(name):  # whatever a server names, nothing but these files is looked for
            return None
        path = self._path(name)
        if not path.exists():
            return None
        held = _load(str(path), name)
        if held is None and name not in self._told:
            self._told.add(name)
            log.error("%s is damaged, or was written by another version: it is asked for again", path)
            self.losses[FROZEN_DAMAGED] += 1
        return held

    def drop(self, run_key: str, checkpoint_round: int, present: str) -> int:
        """Delete what a run asks for no more; how many files that were.

        Its version `present` stays, and those to which it may go back: the one it had after `checkpoint_round`, and all
        that came later.
        """
        rounds = {path: round for path in self._folder.glob("*.safetensors") if (round := _since(path, run_key)) >= 0}
        oldest = max((round for round in rounds.values() if round <= checkpoint_round), default=0)
        old = [path for path, round in rounds.items() if round < oldest and path != self._path(present)]
        for path in old:
            path.unlink(missing_ok=True)
        if old:
            _load.cache_clear()
        return len(old)

    def drop_unused(self, kept: Collection[str], before: float) -> int:
        """Delete what was last written or read before a time (seconds since 1970), except the names `kept`; how many.

        Whoever needs one of them again asks for it again.
        """
        unused = []
        for path in self._folder.iterdir():  # also what a process that was killed has half written
            with suppress(FileNotFoundError):  # another process may delete too
                if path.stem not in kept and path.stat().st_mtime < before:
                    path.unlink()
                    unused.append(path)
        if unused:
            _load.cache_clear()
        return len(unused)


def _since(path: Path, run_key: str) -> int:
    """The round since which there is what the file holds; -1 if it is not of that run, never dropped, or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            run, round = parsed_object(file.metadata()[_ABOUT])["since"]
        return int(round) if run == run_key else -1
    except (OSError, *DAMAGE):
        return -1


@lru_cache(maxsize=4)
def _load(path: str, name: str) -> Tensors | None:
    """Read once per process: every node of a worker, and every round, shares the same tensors. Never write to them."""
    try:
        with safe_open(path, framework="pt") as file:
            written = parsed_object(file.metadata()[_ABOUT])
            tensors: Tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it has no iterator)
            sound = written["name"] == name and content_digest(tensors) == written["content"]
    except (OSError, *DAMAGE):
        return None
    _mark_as_used(path)
    return tensors if sound else None


@cache
def _mark_as_used(path: str) -> None:
    """Once per process: the time of the file is from now on that of this reading (`drop_unused`)."""
    with suppress(OSError):  # on a disk that cannot be written to, nothing is dropped either
        os.utime(path)


@lru_cache(maxsize=4)
def resident(store: FrozenStore, digest: str, device: torch.device) -> Tensors:
    """Frozen tensors, moved to a device once for all rounds. Raises MissingFrozenError if they lack."""
    held = store.get(digest)
    if held is None:
        raise MissingFrozenError(digest)
    return {name: tensor.to(device) for name, tensor in held.items()}


@lru_cache(maxsize=4)
def tidy(store: FrozenStore, run_key: str, name: str, checkpoint_round: int) -> None:
    """Once a round: delete the versions of the base table that nothing can ask for any more."""
    if store.drop(run_key, checkpoint_round, name):
        resident.cache_clear()
