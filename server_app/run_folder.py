"""The folder of a run: everything that a run leaves behind, readable without fedrec, and never a pickle.

config.yaml       the resolved configuration
manifest.json     versions, seed, digests of data, code and specification
setup.json        what every client was told
items.json        ids and titles of the items, by row of the catalogue
metrics.jsonl     one JSON object per round
summary.json      the result, once the run has ended
text_map.*        encoder and reduction as they were fitted, for items that come later
base_table.npy    simulation only: the item vectors that the texts gave, float32 [items, dim]
log.txt           what happened, as plain lines
lock              held while a process works on the run
cut-*.jsonl       lines of metrics.jsonl that were cut off when the run was resumed from an earlier round
checkpoints/      round-000100.safetensors (global model) and .json (where it stands), the newest few
state/            simulation only: what the simulated devices keep on their own disks
secret            deployment only: the root of the server's noise, and of the key by which sites know the run
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from federation.checkpoint import Checkpoint
from fedrec.config.paths import assign
from fedrec.core.disk import reading, writing
from fedrec.core.errors import StoreError
from fedrec.core.owned import own_folder
from fedrec.core.strict_json import json_line, json_page, parsed_object
from fedrec.core.whole_files import replaced, sync, write_text
from fedrec.data.types import Catalogue
from fedrec.evaluation.curves import METRICS
from fedrec.wire.protocol import Setup
from server_app.checkpoints import Checkpoints
from server_app.run_log import RunLog

log = logging.getLogger("fedrec")

CONFIG = "config.yaml"
MANIFEST = "manifest.json"
SUMMARY = "summary.json"
SETUP = "setup.json"
ITEMS = "items.json"
BASE_TABLE = "base_table.npy"
LOCK = "lock"

_ELSEWHERE = "set runs_dir=/another/folder"
_RESTORE = "restore it from a copy, or start a new run"


def being_worked_on(path: Path) -> bool:
    """Whether a process of this account works on the run in a folder."""
    if not (path / LOCK).is_file():
        return False
    try:
        with FileLock(path / LOCK, timeout=0):
            return False
    except Timeout:
        return True
    except PermissionError:  # another account's: only that can tell
        return False


class RunFolder:
    """Writes the files of one run; every file appears whole or not at all, but for the two that grow line by line."""

    def __init__(self, path: Path, *, resumable: bool = True) -> None:
        """A folder that is there, of a run that can be resumed, or not. `new` and `reopened` make sure of it."""
        self.path = path
        self._resumable = resumable
        self.checkpoints = Checkpoints(path / "checkpoints")

    @classmethod
    def new(cls, path: Path, *, resumable: bool = True) -> RunFolder:
        """Make the folder of a new run. Raises StoreError if a run has been there, or it cannot be written."""
        with writing(f"the run folder {path}", _ELSEWHERE):
            if (path / METRICS).exists() or any((path / "state").glob("*")):
                raise StoreError(
                    f"{path} already holds a run: choose another run_id, remove the folder, or go on with "
                    f"{assign('resume', path.name)}"
                )
            for folder in (path, path / "checkpoints", path / "state"):
                own_folder(folder)
        return cls(path, resumable=resumable)

    @classmethod
    def reopened(cls, path: Path) -> RunFolder:
        """The folder of a run that was interrupted. Raises StoreError if there is none, or the run has ended."""
        with writing(f"the run folder {path}", "copy it to a folder that may be, and set runs_dir to that"):
            if not (path / CONFIG).is_file():
                raise StoreError(f"{path} holds no run that could be resumed: it has no {CONFIG}")
            if (path / SUMMARY).exists():
                raise StoreError(
                    f"the run in {path} has ended, its result is in {path / SUMMARY}: nothing is left to do"
                )
            for folder in (path, path / "checkpoints", path / "state"):
                own_folder(folder)
        return cls(path)

    @contextmanager
    def kept_up(self) -> Iterator[None]:
        """Whatever the disk refuses meanwhile is a StoreError that says how to go on with the run."""
        on = f"; {assign('resume', self.path.name)} goes on with this one" if self._can_go_on() else ""
        with writing(f"the run folder {self.path}", f"start another run with runs_dir=/another/folder{on}"):
            yield

    def _can_go_on(self) -> bool:
        with suppress(OSError):
            return self._resumable and (self.path / CONFIG).is_file()
        return False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else works on the run meanwhile. Raises StoreError if somebody does; a killed process does not."""
        lock = FileLock(self.path / LOCK, timeout=0)
        with self.kept_up():
            try:
                lock.acquire()
            except Timeout as error:
                raise StoreError(
                    f"the run in {self.path} is being worked on by another process: wait for it, or end it first"
                ) from error
        try:
            yield
        finally:
            lock.release()

    @property
    def state_dir(self) -> Path:
        """Where simulated devices keep their private tensors and what they were sent once."""
        return self.path / "state"

    @contextmanager
    def logged(self, what: str) -> Iterator[None]:
        """Meanwhile the log goes to `log.txt` too, and so does the error if `what` fails."""
        with self.kept_up():
            handler, level = self._log_handler(), log.level
        log.setLevel(logging.INFO)
        log.addHandler(handler)
        try:
            yield
        except BaseException as error:
            log.error("%s has failed: %s: %s", what, type(error).__name__, error)
            raise
        finally:
            log.removeHandler(handler)
            log.setLevel(level)
            handler.close()

    def _log_handler(self) -> logging.Handler:
        handler = RunLog(self.path / "log.txt", encoding="utf-8")
        formatter = logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%SZ")
        formatter.converter = time.gmtime
        handler.setFormatter(formatter)
        return handler

    def write_text(self, name: str, text: str) -> None:
        """Write a whole file atomically. Raises StoreError if the disk refuses it."""
        with self.kept_up():
            write_text(self.path / name, text)

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        """Write a JSON file atomically, indented for people; a number that is not finite is null."""
        self.write_text(name, json_page(values))

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file's object; empty if there is no such file. Raises StoreError if it is damaged."""
        path = self.path / name
        with reading(str(path), _RESTORE):
            return parsed_object(path.read_text(encoding="utf-8")) if path.exists() else {}

    def cut_metrics(self, round: int) -> None:
        """Keep the lines of the rounds up to `round`; those after it go to a file of their own, `cut-<n>.jsonl`.

        Raises StoreError if a line that is to be kept is missing or damaged.
        """
        path = self.path / METRICS
        with reading(str(path), _RESTORE):
            text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        lines = text.splitlines(keepends=True)
        kept, cut = lines[:round], lines[round:]
        if (found := [_round(line) for line in kept]) != list(range(1, round + 1)):
            raise StoreError(
                f"{path} should begin with the rounds 1 to {round}, its lines are of the rounds {found}: restore it "
                "from a copy, or start a new run"
            )
        if not cut:
            return
        number = 1 + len(list(self.path.glob("cut-*.jsonl")))
        self.write_text(f"cut-{number}.jsonl", "".join(cut))
        self.write_text(METRICS, "".join(kept))

    def write_public(self, setup: Setup, catalogue: Catalogue) -> None:
        """Write what is public about model and items: with the last checkpoint, all it takes to recommend."""
        self.write_text(SETUP, setup.to_json() + "\n")
        items = {"ids": catalogue.item_ids, "titles": catalogue.titles}
        self.write_text(ITEMS, json_line(items, ascii_only=False) + "\n")

    def write_base_table(self, table: NDArray[np.float32]) -> None:
        """Write the item vectors that the texts gave. Raises StoreError if the disk refuses it."""
        with self.kept_up(), replaced(self.path / BASE_TABLE) as started, started.open("wb") as file:
            np.save(file, table, allow_pickle=False)

    def add_metrics(self, record: dict[str, Any]) -> None:
        """Append one round's line, at once on disk for whoever follows the file; whole, or not at all."""
        line = (json_line(record) + "\n").encode()
        with self.kept_up(), (self.path / METRICS).open("ab", buffering=0) as file:
            before = file.tell()
            try:
                while line:
                    line = line[file.write(line) :]
            except OSError:
                file.truncate(before)
                raise

    def write_checkpoint(self, checkpoint: Checkpoint, kept: int) -> None:
        """Keep a checkpoint, and of the earlier ones the newest `kept - 1`; the metrics until then are on the disk."""
        with self.kept_up():
            if (self.path / METRICS).exists():
                sync(self.path / METRICS)
            self.checkpoints.write(checkpoint)
            self.checkpoints.prune(checkpoint.round, kept)


def _round(line: str) -> int | None:
    """The round of a line of the metrics; None if it is damaged."""
    try:
        return int(parsed_object(line)["round"])
    except (ValueError, TypeError, KeyError):
        return None
