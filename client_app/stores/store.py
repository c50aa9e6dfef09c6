"""The users' private store: their private tensors, on the node's own disk, versioned by round and keyed by run.

A version is one user's tensors after one round. The versions of a round are written in one transaction, so a node that
is killed leaves either the old versions or the new ones. Those newer than the oldest checkpoint to which the server may
go back are kept, and one that is older, so that a resumed run finds the state that belongs to its model. Versions
that are no longer needed are removed from time to time.
"""

from __future__ import annotations

import itertools
import logging
import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from client_app.stores.losses import STORE_DAMAGED, STORE_LOST, Losses
from client_app.stores.pieces import DamagedError, PieceFile, Rows, close_file, is_damage, open_file
from client_app.stores.versions import VersionIndex
from client_app.stores.witness import Witness, Written, forget_witness
from fedrec.core.disk import writing
from fedrec.core.errors import StoreError
from fedrec.core.tensors import DTYPES, Spec, Tensors

log = logging.getLogger("fedrec")
T = TypeVar("T")

USERS = "users.sqlite"
"""The name of the file in a state-dir."""

_FEW = 1024
"""Versions that may lie about unused in any case."""


class DamagedStoreError(StoreError):
    """The users' store is not what was written to it."""


class PrivateStore:
    """Private tensors of one run's users in the file `<state_dir>/users.sqlite`."""

    def __init__(
        self,
        state_dir: Path,
        run_key: str,
        spec: Spec,
        *,
        synced: bool = True,
        reading: bool = False,
        losses: Losses | None = None,
    ) -> None:
        """The store of a run.

        Args:
            state_dir: Folder on the node's own disk, or on one that the workers of a simulation share.
            run_key: Names the run; several may share a folder.
            spec: Specification of one user's private tensors.
            synced: Whether what was written must survive a power failure, and not only the end of the process. A
                simulation can do without: with its machine, the run has ended too.
            reading: The file is there, and only read.
            losses: Where it is counted if the file is found damaged and put aside, or is not the one written to.
        """
        self._path = state_dir / USERS
        self._run = run_key
        self._spec = spec
        self._synced = synced
        self._reading = reading
        self._losses = Counter() if losses is None else losses
        self._witness = Witness(state_dir, run_key)
        self._checked: PieceFile | None = None
        self._width = sum(entry.nbytes for entry in spec.values())
        if not reading:
            with writing(f"the state-dir {state_dir}", "give a folder on a disk"):
                state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._sound(self._opened)

    @contextmanager
    def _transaction(self, *, writing: bool) -> Iterator[tuple[PieceFile, VersionIndex]]:
        try:
            file = open_file(self._path, self._synced, self._reading)
            with file.transaction(writing=writing):
                self._check(file)
                yield file, file.index(self._run)
        except (sqlite3.Error, DamagedError, OSError) as error:
            close_file(self._path, self._synced, self._reading)
            damaged = isinstance(error, DamagedError) or (isinstance(error, sqlite3.Error) and is_damage(error))
            raise (DamagedStoreError if damaged else StoreError)(
                f"the users' store {self._path} cannot be used ({error}): check the disk and its permissions; if the "
                "file is damaged, move it away and its users start anew"
            ) from error

    def _check(self, file: PieceFile) -> None:
        """Notice, whenever a file is opened, that it lacks what was written before."""
        if file is self._checked:
            return
        said, found = self._witness.read(), file.written(self._run)
        self._checked = file
        if said is not None and (found is None or not found.covers(said)):
            log.error(
                "the users' store %s is not the one that this run's private tensors were written to, or an older copy "
                "of it: users who are not in it start anew; put the file back if you have it",
                self._path,
            )
            self._losses[STORE_LOST] += 1
            self._write_witness(found)

    def _write_witness(self, found: Written | None) -> None:
        try:
            self._witness.write(found)
        except OSError as error:
            log.warning("the witness of the users' store %s cannot be written: %s", self._path, error)

    def _attest(self, found: Written | None) -> None:
        """Let the witness say what is written now; of a simulation's store only which one it is."""
        self._write_witness(found if found is None or self._synced else Written(found.token, 0))

    def _sound(self, work: Callable[[], T]) -> T:
        """Do the work; on a device, if the store turns out to be damaged, once more with a new one.

        Whole rounds are written or not, so damage is the disk's, and nothing in the file is to be trusted.
        """
        try:
            return work()
        except DamagedStoreError as error:
            if not self._synced:
                raise
            self._write_witness(None)
            number = next(n for n in itertools.count(1) if not self._aside(n).exists())
            self._path.replace(self._aside(number))
            self._path.with_name(f"{self._path.name}-journal").unlink(missing_ok=True)
            log.error("%s; it is kept as %s, and its users start anew", error, self._aside(number).name)
            self._losses[STORE_DAMAGED] += 1
            return work()

    def _aside(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.damaged-{number}")

    def _opened(self) -> None:
        with self._transaction(writing=False):
            pass

    def load(self, keys: NDArray[np.uint64], before: int) -> tuple[Tensors, NDArray[np.bool_]]:
        """Newest tensors [users, ...] from rounds earlier than `before`, and who has any (others' are zero)."""
        return self._sound(lambda: self._load(keys, before))

    def _load(self, keys: NDArray[np.uint64], before: int) -> tuple[Tensors, NDArray[np.bool_]]:
        with self._transaction(writing=False) as (file, index):
            entries = index.newest(keys, before)
            found = entries >= 0
            rows = file.read(index, entries[found]) if found.any() else np.zeros((0, self._width), dtype=np.uint8)
        return self._unpack(rows, found), found

    def save(self, round: int, keys: NDArray[np.uint64], tensors: Tensors, checkpoint_round: int) -> None:
        """Write the users' tensors [users, ...] after `round`; versions that nothing can ask for may be dropped."""
        if len(keys):
            self._sound(lambda: self._save(round, keys, tensors, checkpoint_round))

    def _save(self, round: int, keys: NDArray[np.uint64], tensors: Tensors, checkpoint_round: int) -> None:
        with self._transaction(writing=True) as (file, index):
            file.write(self._run, keys, np.full(len(keys), round), self._pack(len(keys), tensors))
            self._make_way(file, index, len(keys), checkpoint_round)
            written = file.written(self._run)
        self._attest(written)

    def _make_way(self, file: PieceFile, index: VersionIndex, saved: int, checkpoint_round: int) -> None:
        """If more than half is needed no more, write what is needed of the oldest pieces once more, and drop these.

        Twice as many versions as were saved are looked at, so that the file comes down and no save waits for long.
        """
        if len(index) < index.full:
            return
        live = index.live(checkpoint_round)
        index.full = 2 * int(live.sum()) + _FEW
        if len(index) < index.full:
            return
        last = file.oldest(self._run, 2 * saved)
        moved = np.flatnonzero(live & (index.pieces <= last))
        if len(moved):
            file.write(self._run, index.users[moved], index.rounds[moved], file.read(index, moved))
        file.delete(self._run, last)

    def newest(self) -> int:
        """The last round after which there are tensors of anybody; 0 if nobody has trained."""

        def work() -> int:
            with self._transaction(writing=False) as (_, index):
                return int(index.rounds.max(initial=0))

        return self._sound(work)

    def to_follow(self, resumes: Sequence[int]) -> Sequence[int]:
        """Of these resumptions those that the store has not followed yet."""

        def work() -> Sequence[int]:
            with self._transaction(writing=False) as (file, _):
                return resumes[file.resumed(self._run) :]

        return self._sound(work)

    def resume(self, resumes: Sequence[int]) -> None:
        """Forget what was trained after the server's checkpoint in rounds that it has not kept.

        The store remembers which resumptions it has followed: each is followed once, whoever asks how often, so that
        the nodes of a simulation, which share a store, and one that comes back later lose nothing that counts.

        Args:
            resumes: The round after which the run went on, each time that it was resumed so far.
        """
        self._sound(lambda: self._resume(resumes))

    def _resume(self, resumes: Sequence[int]) -> None:
        with self._transaction(writing=False) as (file, _):
            if file.resumed(self._run) >= len(resumes):
                return
        self._write_witness(None)  # until what is kept has been written again
        with self._transaction(writing=True) as (file, index):
            new = resumes[file.resumed(self._run) :]
            if new:
                self._rollback(file, index, min(new))
                file.set_resumed(self._run, len(resumes))
            written = file.written(self._run)
        self._attest(written)

    def forget_others(self, kept: Collection[str], newest: int) -> int:
        """Forget other runs, except those `kept` and the `newest` in which users trained last; how many that were.

        The file does not become smaller: what is written next goes where the forgotten runs were.
        """
        return self._sound(lambda: self._forget_others(kept, newest))

    def _forget_others(self, kept: Collection[str], newest: int) -> int:
        with self._transaction(writing=True) as (file, _):
            others = [run for run in file.runs() if run != self._run]
            old = [run for run in others[newest:] if run not in kept]
            for run in old:
                forget_witness(self._path.parent, run)
                file.forget(run)
        return len(old)

    def forget_users(self, keys: NDArray[np.uint64]) -> int:
        """Delete all versions of some users, in all runs, and their bytes from the file; how many there were.

        Raises StoreError if the file cannot be used, or there is no room to write it once more.
        """
        return self._sound(lambda: self._forget_users(keys))

    def _forget_users(self, keys: NDArray[np.uint64]) -> int:
        with self._transaction(writing=False) as (file, _):
            runs = file.runs()
        forgotten = 0
        for run in runs:
            witness = Witness(self._path.parent, run)
            with self._transaction(writing=True) as (file, _):
                index = file.index(run)
                kept = np.flatnonzero(~np.isin(index.users, keys))
                if gone := len(index) - len(kept):
                    witness.write(None)  # until what is kept has been written again
                    self._keep(file, run, index, kept)
                written = file.written(run)
            if gone:
                witness.write(written)
            forgotten += gone
        try:
            open_file(self._path, self._synced).compact()
        except sqlite3.Error as error:
            raise StoreError(
                f"the users' store {self._path} cannot be written once more ({error}), so that bytes of what was "
                "deleted are still in it: make room on the disk, and do it again"
            ) from error
        return forgotten

    def rollback(self, round: int) -> None:
        """Forget everything newer than `round`: the run goes on from there."""
        self._write_witness(None)
        with self._transaction(writing=True) as (file, index):
            self._rollback(file, index, round)
            written = file.written(self._run)
        self._attest(written)

    def _rollback(self, file: PieceFile, index: VersionIndex, round: int) -> None:
        kept = np.flatnonzero(index.rounds <= round)
        if len(kept) == len(index):
            return
        self._keep(file, self._run, index, kept)

    @staticmethod
    def _keep(file: PieceFile, run: str, index: VersionIndex, kept: NDArray[np.int64]) -> None:
        """Write these entries of a run once more, and delete all that were before."""
        last = index.last
        if len(kept):
            file.write(run, index.users[kept], index.rounds[kept], file.read(index, kept))
        file.delete(run, last)

    def _pack(self, users: int, tensors: Tensors) -> Rows:
        """Tensors [users, ...] as rows of bytes."""
        packed = np.zeros((users, self._width), dtype=np.uint8)
        at = 0
        for name in sorted(self._spec):
            row = tensors[name].detach().cpu().reshape(users, self._spec[name].size).contiguous()
            packed[:, at : at + self._spec[name].nbytes] = row.numpy().view(np.uint8)
            at += self._spec[name].nbytes
        return packed

    def _unpack(self, rows: Rows, found: NDArray[np.bool_]) -> Tensors:
        """Rows of the users who were found, as tensors [users, ...] that are zero for the others."""
        if rows.shape[1] != self._width:
            raise StoreError(
                f"the users' store {self._path} holds {rows.shape[1]} bytes for a user of run {self._run}, the "
                f"backbone needs {self._width}: the run was made with another backbone or dimension; use its own "
                "state-dir"
            )
        values: Tensors = {}
        at = 0
        for name in sorted(self._spec):
            entry = self._spec[name]
            values[name] = entry.zeros(len(found))
            if entry.nbytes and len(rows):
                own = torch.from_numpy(rows[:, at : at + entry.nbytes].copy()).view(DTYPES[entry.dtype])
                values[name][torch.from_numpy(found)] = own.reshape(len(rows), *entry.shape)
            at += entry.nbytes
        return values
