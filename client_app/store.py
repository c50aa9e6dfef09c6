"""The users' private store: their private tensors, on the node's own disk, versioned by round and keyed by run.

A row is one user's tensors after one round. The rows of a round are written in one transaction, so a node that is
killed leaves either the old versions or the new ones. Versions newer than the last checkpoint are kept, and one that
is older, so that a resumed run finds the state that belongs to its model.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedrec.errors import StoreError
from fedrec.tensors import DTYPES, Spec, Tensors

_SCHEMA = """
CREATE TABLE IF NOT EXISTS private (
    run TEXT NOT NULL, user INTEGER NOT NULL, round INTEGER NOT NULL, tensors BLOB NOT NULL,
    PRIMARY KEY (run, user, round)
) WITHOUT ROWID
"""
_BATCH = 500


class PrivateStore:
    """Private tensors of one run's users in the file `<state_dir>/users.sqlite`."""

    def __init__(self, state_dir: Path, run_key: str, spec: Spec) -> None:
        self._path = state_dir / "users.sqlite"
        self._run = run_key
        self._spec = spec
        self._width = sum(entry.nbytes for entry in spec.values())
        try:
            state_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"the state-dir {state_dir} cannot be made ({error}): give a folder on a disk") from error
        with self._connect() as connection:
            connection.execute(_SCHEMA)

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = sqlite3.connect(self._path, timeout=60)
            try:
                # A rollback journal, not a write-ahead log: a file may then be opened by several workers for the first
                # time at once, and lie on a disk that several machines share.
                connection.execute("PRAGMA journal_mode=TRUNCATE")
                connection.execute("PRAGMA synchronous=NORMAL")
                with connection:
                    yield connection
            finally:
                connection.close()
        except sqlite3.Error as error:
            raise StoreError(
                f"the users' store {self._path} cannot be used ({error}): check the disk and its permissions; if the "
                "file is damaged, move it away and its users start anew"
            ) from error

    def load(self, keys: NDArray[np.uint64], before: int) -> tuple[Tensors, NDArray[np.bool_]]:
        """Newest tensors [users, ...] from rounds earlier than `before`, and who has any (others' are zero)."""
        place = {key: position for position, key in enumerate(keys.astype(np.int64).tolist())}
        positions: list[int] = []
        blobs: list[bytes] = []
        with self._connect() as connection:
            for batch in _batches(list(place)):
                marks = ",".join("?" * len(batch))
                rows = connection.execute(
                    f"SELECT user, MAX(round), tensors FROM private WHERE run = ? AND round < ? AND user IN ({marks}) "
                    "GROUP BY user",
                    (self._run, before, *batch),
                )
                for user, _, blob in rows:
                    positions.append(place[user])
                    blobs.append(blob)
        return self._unpack(len(keys), np.array(positions, dtype=np.int64), blobs)

    def save(self, round: int, keys: NDArray[np.uint64], tensors: Tensors, checkpoint_round: int) -> None:
        """Write the users' tensors [users, ...] after `round`, and drop versions that nothing can ask for."""
        packed = np.zeros((len(keys), self._width), dtype=np.uint8)
        at = 0
        for name in sorted(self._spec):
            row = tensors[name].detach().cpu().reshape(len(keys), self._spec[name].size).contiguous()
            packed[:, at : at + self._spec[name].nbytes] = row.numpy().view(np.uint8)
            at += self._spec[name].nbytes
        users = [int(key) for key in keys.astype(np.int64)]
        with self._connect() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO private VALUES (?, ?, ?, ?)",
                ((self._run, user, round, row.tobytes()) for user, row in zip(users, packed, strict=True)),
            )
            connection.executemany(
                "DELETE FROM private WHERE run = ?1 AND user = ?2 AND round < "
                "(SELECT MAX(round) FROM private WHERE run = ?1 AND user = ?2 AND round <= ?3)",
                ((self._run, user, checkpoint_round) for user in users),
            )

    def rollback(self, round: int) -> None:
        """Forget everything newer than `round`: the run goes on from there."""
        with self._connect() as connection:
            connection.execute("DELETE FROM private WHERE run = ? AND round > ?", (self._run, round))

    def _unpack(
        self, users: int, positions: NDArray[np.int64], blobs: list[bytes]
    ) -> tuple[Tensors, NDArray[np.bool_]]:
        """Rows as tensors [users, ...], zero where there is no row, and where there is one."""
        wrong = next((len(blob) for blob in blobs if len(blob) != self._width), None)
        if wrong is not None:
            raise StoreError(
                f"the users' store {self._path} holds {wrong} bytes for a user of run {self._run}, the backbone "
                f"needs {self._width}: the run was made with another backbone or dimension; use its own state-dir"
            )
        found = np.zeros(users, dtype=np.bool_)
        found[positions] = True
        packed = np.frombuffer(b"".join(blobs), dtype=np.uint8).reshape(len(blobs), self._width)
        values: Tensors = {}
        at = 0
        for name in sorted(self._spec):
            entry = self._spec[name]
            values[name] = entry.zeros(users)
            if entry.nbytes and blobs:
                rows = torch.from_numpy(packed[:, at : at + entry.nbytes].copy()).view(DTYPES[entry.dtype])
                values[name][torch.from_numpy(positions)] = rows.reshape(len(blobs), *entry.shape)
            at += entry.nbytes
        return values, found


def _batches(users: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(users), _BATCH):
        yield users[start : start + _BATCH]
