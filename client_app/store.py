"""The users' private store: their private tensors, on the node's own disk, versioned by round and keyed by run.

A version is one user's tensors after one round. The versions of a round are written in one transaction, so a node that
is killed leaves either the old versions or the new ones. Those newer than the oldest checkpoint to which the server may
go back are kept, and one that is older, so that a resumed run finds the state that belongs to its model. What is needed
no more makes way now and then.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from client_app.pieces import PieceFile, Rows, close_file, open_file
from client_app.versions import VersionIndex
from fedrec.errors import StoreError
from fedrec.tensors import DTYPES, Spec, Tensors

_FEW = 1024
"""Versions that may lie about unused in any case."""


class PrivateStore:
    """Private tensors of one run's users in the file `<state_dir>/users.sqlite`."""

    def __init__(self, state_dir: Path, run_key: str, spec: Spec, *, synced: bool = True) -> None:
        """The store of a run.

        Args:
            state_dir: Folder on the node's own disk, or on one that the workers of a simulation share.
            run_key: Names the run; several may share a folder.
            spec: Specification of one user's private tensors.
            synced: Whether what was written must survive a power failure, and not only the end of the process. A
                simulation can do without: with its machine, the run has ended too.
        """
        self._path = state_dir / "users.sqlite"
        self._run = run_key
        self._spec = spec
        self._synced = synced
        self._width = sum(entry.nbytes for entry in spec.values())
        try:
            state_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"the state-dir {state_dir} cannot be made ({error}): give a folder on a disk") from error
        with self._transaction(writing=False):
            pass

    @contextmanager
    def _transaction(self, *, writing: bool) -> Iterator[tuple[PieceFile, VersionIndex]]:
        try:
            file = open_file(self._path, self._synced)
            with file.transaction(writing=writing):
                yield file, file.index(self._run)
        except sqlite3.Error as error:
            close_file(self._path, self._synced)
            raise StoreError(
                f"the users' store {self._path} cannot be used ({error}): check the disk and its permissions; if the "
                "file is damaged, move it away and its users start anew"
            ) from error

    def load(self, keys: NDArray[np.uint64], before: int) -> tuple[Tensors, NDArray[np.bool_]]:
        """Newest tensors [users, ...] from rounds earlier than `before`, and who has any (others' are zero)."""
        with self._transaction(writing=False) as (file, index):
            entries = index.newest(keys, before)
            found = entries >= 0
            rows = file.read(index, entries[found]) if found.any() else np.zeros((0, self._width), dtype=np.uint8)
        return self._unpack(rows, found), found

    def save(self, round: int, keys: NDArray[np.uint64], tensors: Tensors, checkpoint_round: int) -> None:
        """Write the users' tensors [users, ...] after `round`; versions that nothing can ask for may be dropped."""
        if not len(keys):
            return
        with self._transaction(writing=True) as (file, index):
            file.write(self._run, keys, np.full(len(keys), round), self._pack(len(keys), tensors))
            self._make_way(file, index, len(keys), checkpoint_round)

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

    def resume(self, resumes: Sequence[int]) -> None:
        """Forget what was trained after the server's checkpoint in rounds that it has not kept.

        The store remembers which resumptions it has followed: each is followed once, whoever asks how often, so that
        the nodes of a simulation, which share a store, and one that comes back later lose nothing that counts.

        Args:
            resumes: The round after which the run went on, each time that it was resumed so far.
        """
        with self._transaction(writing=False) as (file, _):
            if file.resumed(self._run) >= len(resumes):
                return
        with self._transaction(writing=True) as (file, index):
            new = resumes[file.resumed(self._run) :]
            if new:
                self._rollback(file, index, min(new))
                file.set_resumed(self._run, len(resumes))

    def rollback(self, round: int) -> None:
        """Forget everything newer than `round`: the run goes on from there."""
        with self._transaction(writing=True) as (file, index):
            self._rollback(file, index, round)

    def _rollback(self, file: PieceFile, index: VersionIndex, round: int) -> None:
        kept = np.flatnonzero(index.rounds <= round)
        if len(kept) == len(index):
            return
        last = index.last
        if len(kept):
            file.write(self._run, index.users[kept], index.rounds[kept], file.read(index, kept))
        file.delete(self._run, last)

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
