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

    def __init__(self, state_dir: Path, run_id: str, spec: Spec) -> None:
        self._path = state_dir / "users.sqlite"
        self._run = run_id
        self._spec = spec
        self._width = sum(entry.nbytes for entry in spec.values())
        try:
            state_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"the state-dir {state_dir} cannot be made ({error}): give a folder on a disk") from error
        with self._connect() as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(_SCHEMA)

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = sqlite3.connect(self._path, timeout=60)
            try:
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
        values = {name: entry.zeros(len(keys)) for name, entry in self._spec.items()}
        found = np.zeros(len(keys), dtype=np.bool_)
        place = {int(key): position for position, key in enumerate(keys.astype(np.int64))}
        with self._connect() as connection:
            for batch in _batches(list(place)):
                marks = ",".join("?" * len(batch))
                rows = connection.execute(
                    f"SELECT user, MAX(round), tensors FROM private WHERE run = ? AND round < ? AND user IN ({marks}) "
                    "GROUP BY user",
                    (self._run, before, *batch),
                )
                for user, _, blob in rows:
                    position = place[user]
                    self._unpack(blob, values, position)
                    found[position] = True
        return values, found

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

    def _unpack(self, blob: bytes, values: Tensors, position: int) -> None:
        if len(blob) != self._width:
            raise StoreError(
                f"the users' store {self._path} holds {len(blob)} bytes for a user of run {self._run}, the backbone "
                f"needs {self._width}: the run was made with another backbone or dimension; use its own state-dir"
            )
        at = 0
        for name in sorted(self._spec):
            entry = self._spec[name]
            if entry.nbytes:
                flat = torch.frombuffer(bytearray(blob[at : at + entry.nbytes]), dtype=DTYPES[entry.dtype])
                values[name][position] = flat.reshape(entry.shape)
            at += entry.nbytes


def _batches(users: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(users), _BATCH):
        yield users[start : start + _BATCH]
