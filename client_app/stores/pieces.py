"""A file of pieces: versions of many users' rows of bytes, in SQLite, written like a log by any number of processes.

New versions go to the end of the file, in pieces of several users each: chosen users are random, and to change their
rows in place would touch about one page per user. An index in memory (`VersionIndex`) says where each version is; every
transaction first adds to it what other processes have written.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client_app.stores.versions import VersionIndex
from client_app.stores.witness import Written
from fedrec.core.errors import StoreError
from fedrec.core.owned import own_file

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS run (number INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, token BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS piece (number INTEGER PRIMARY KEY AUTOINCREMENT, run INTEGER NOT NULL, "
    "users BLOB NOT NULL, rounds BLOB NOT NULL, rows BLOB NOT NULL, crc INTEGER NOT NULL)",
    "CREATE INDEX IF NOT EXISTS piece_of_run ON piece (run)",
    "CREATE TABLE IF NOT EXISTS resumed (run TEXT PRIMARY KEY, times INTEGER NOT NULL)",
)
_PIECE_BYTES = 4096
"""Of rows in a piece, about: what is read at least to read one."""
_OPEN_FILES = 4
_REPLACED = "the users' store was replaced by another while it was in use: start this node again"
_VERSION = 1
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_KEY, _ROUND = np.dtype("<u8"), np.dtype("<i8")

Rows = NDArray[np.uint8]


class DamagedError(Exception):
    """The file is not what was written to it."""


def is_damage(error: sqlite3.Error) -> bool:
    """Whether an error of SQLite says that the file is damaged, and not that it cannot be used just now."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED


class PieceFile:
    """An open file, and the index of each run in it."""

    def __init__(self, path: Path, synced: bool, reading: bool = False) -> None:
        """Open or make the file; `synced`: what is written must survive a power failure, and is checked now.

        `reading`: open it as it is, to be read alone; it may then belong to another account. Raises DamagedError if it
        is not sound.
        """
        if reading:
            self._connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
            self._require_version(path)
            self._indexes: dict[str, tuple[bytes, VersionIndex]] = {}
            self.identity = _identity(path)
            return
        own_file(path)  # and of the same mode SQLite makes its journal
        self._connection = sqlite3.connect(path, timeout=60, isolation_level=None)
        # A rollback journal, not a write-ahead log: a file may then be opened by several workers for the first time at
        # once, and lie on a disk that several machines share.
        self._connection.execute("PRAGMA journal_mode=TRUNCATE")
        self._connection.execute(f"PRAGMA synchronous={'NORMAL' if synced else 'OFF'}")
        self._connection.execute("PRAGMA secure_delete=OFF")
        self._indexes = {}
        with self.transaction(writing=True):
            self._require_version(path)
            for statement in _SCHEMA:
                self._connection.execute(statement)
            self._connection.execute(f"PRAGMA user_version={_VERSION}")
        if synced and (said := self._connection.execute("PRAGMA quick_check").fetchone()) != ("ok",):
            raise DamagedError(said[0])
        self.identity = _identity(path)

    def _require_version(self, path: Path) -> None:
        (tables,) = self._connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if tables and version != _VERSION:
            raise StoreError(
                f"the users' store {path} was written by another version of fedrec ({version}, this one writes "
                f"{_VERSION}): use that version, or give another state-dir"
            )

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    @contextmanager
    def transaction(self, *, writing: bool) -> Iterator[None]:
        """All that is done in it is done or not done, and sees the file as it was at one moment."""
        self._connection.execute("BEGIN IMMEDIATE" if writing else "BEGIN")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def index(self, run: str) -> VersionIndex:
        """Where the run's versions lie, as the transaction found them."""
        found = self._connection.execute("SELECT number, token FROM run WHERE key = ?", (run,)).fetchone()
        if found is None:
            return VersionIndex()
        number, token = found
        known, index = self._indexes.get(run, (None, VersionIndex()))
        if known != token:  # another file was put in the place of the one that the index was made from
            index = VersionIndex()
            self._indexes[run] = (token, index)
        (first,) = self._connection.execute("SELECT MIN(number) FROM piece WHERE run = ?", (number,)).fetchone()
        index.forget(index.last + 1 if first is None else first)
        new = self._connection.execute(
            "SELECT number, users, rounds FROM piece WHERE run = ? AND number > ? ORDER BY number", (number, index.last)
        ).fetchall()
        if new:
            sizes = [len(users) // _KEY.itemsize for _, users, _ in new]
            index.add(
                np.frombuffer(b"".join(users for _, users, _ in new), _KEY),
                np.frombuffer(b"".join(rounds for _, _, rounds in new), _ROUND),
                np.repeat([piece for piece, _, _ in new], sizes),
                np.concatenate([np.arange(size) for size in sizes]),
            )
        return index

    def read(self, index: VersionIndex, entries: NDArray[np.int64]) -> Rows:
        """The rows [entries, width] of some entries of an index that was asked for in this transaction."""
        pieces, which = np.unique(index.pieces[entries], return_inverse=True)
        wanted = pieces.tolist()
        found = self._connection.execute(
            "SELECT users, rounds, rows, crc, number FROM json_each(?) CROSS JOIN piece ON number = value",
            (json.dumps(wanted),),
        ).fetchall()
        if [number for *_, number in found] != wanted:
            raise StoreError(_REPLACED)
        for users, rounds, rows, crc, number in found:
            if _crc(users, rounds, rows) != crc:
                raise DamagedError(f"piece {number} has another checksum than when it was written")
        sizes = np.array([len(users) // _KEY.itemsize for users, *_ in found])
        width = len(found[0][2]) // sizes[0] if found else 0
        if [len(rows) for _, _, rows, _, _ in found] != (sizes * width).tolist():
            raise StoreError(_REPLACED)
        places = index.places[entries]
        at = (np.cumsum(sizes) - sizes)[which] + places
        users = np.frombuffer(b"".join(users for users, *_ in found), _KEY)
        if (places >= sizes[which]).any() or (users[at] != index.users[entries]).any():
            raise StoreError(_REPLACED)
        rows = np.frombuffer(b"".join(rows for _, _, rows, _, _ in found), np.uint8).reshape(len(users), width)
        taken: Rows = rows[at]
        return taken

    def write(self, run: str, users: NDArray[np.uint64], rounds: NDArray[np.int64], rows: Rows) -> None:
        """Write versions to the end of the file."""
        self._connection.execute("INSERT OR IGNORE INTO run (key, token) VALUES (?, randomblob(16))", (run,))
        (number,) = self._connection.execute("SELECT number FROM run WHERE key = ?", (run,)).fetchone()
        step = max(1, _PIECE_BYTES // max(1, rows.shape[1]))
        for start in range(0, len(users), step):
            part = slice(start, start + step)
            packed = (users[part].astype(_KEY).tobytes(), rounds[part].astype(_ROUND).tobytes(), rows[part].tobytes())
            self._connection.execute(
                "INSERT INTO piece (run, users, rounds, rows, crc) VALUES (?, ?, ?, ?, ?)",
                (number, *packed, _crc(*packed)),
            )

    def written(self, run: str) -> Written | None:
        """What a witness may say of the run; None if nothing of it was written."""
        newest = "(SELECT MAX(piece.number) FROM piece WHERE piece.run = run.number)"
        found = self._connection.execute(f"SELECT token, {newest} FROM run WHERE key = ?", (run,)).fetchone()
        return None if found is None else Written(found[0].hex(), found[1] or 0)

    def resumed(self, run: str) -> int:
        """How many times the run was resumed, as far as is written here."""
        found = self._connection.execute("SELECT times FROM resumed WHERE run = ?", (run,)).fetchone()
        return 0 if found is None else int(found[0])

    def set_resumed(self, run: str, times: int) -> None:
        """Write down how many times the run was resumed."""
        self._connection.execute("INSERT OR REPLACE INTO resumed (run, times) VALUES (?, ?)", (run, times))

    def oldest(self, run: str, versions: int) -> int:
        """Number of the last of the run's oldest pieces that together hold at least so many versions."""
        total, last = 0, 0
        for number, size in self._connection.execute(
            "SELECT piece.number, length(users) FROM piece JOIN run ON run = run.number WHERE key = ? ORDER BY 1",
            (run,),
        ):
            total, last = total + size // _KEY.itemsize, number
            if total >= versions:
                break
        return last

    def runs(self) -> list[str]:
        """The keys of all runs, that which was written to last first."""
        newest = "(SELECT MAX(piece.number) FROM piece WHERE piece.run = run.number)"
        return [key for (key,) in self._connection.execute(f"SELECT key FROM run ORDER BY {newest} DESC")]

    def forget(self, run: str) -> None:
        """Delete all that is known of a run. SQLite does not give the pages back to the disk, but fills them again."""
        self._connection.execute("DELETE FROM piece WHERE run = (SELECT number FROM run WHERE key = ?)", (run,))
        self._connection.execute("DELETE FROM run WHERE key = ?", (run,))
        self._connection.execute("DELETE FROM resumed WHERE run = ?", (run,))
        self._indexes.pop(run, None)

    def compact(self) -> None:
        """Write the whole file once more without what was deleted, of which SQLite otherwise leaves the bytes."""
        self._connection.execute("VACUUM")

    def delete(self, run: str, last: int) -> None:
        """Delete the run's pieces up to number `last`."""
        self._connection.execute(
            "DELETE FROM piece WHERE number <= ? AND run = (SELECT number FROM run WHERE key = ?)", (last, run)
        )


def _crc(*parts: bytes) -> int:
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc


_Key = tuple[str, bool, bool, int, int]
_open: OrderedDict[_Key, PieceFile] = OrderedDict()


def _key(path: Path, synced: bool, reading: bool) -> _Key:
    # A connection belongs to the process and thread that made it.
    return str(path), synced, reading, os.getpid(), threading.get_ident()


def open_file(path: Path, synced: bool, reading: bool = False) -> PieceFile:
    """The file, open; it stays open in this process and thread, unless another is found in its place."""
    key = _key(path, synced, reading)
    if (known := _open.get(key)) is not None and known.identity == _identity(path):
        _open.move_to_end(key)
        return known
    close_file(path, synced, reading)
    _open[key] = PieceFile(path, synced, reading)
    while len(_open) > _OPEN_FILES:
        _open.popitem(last=False)[1].close()
    return _open[key]


def close_file(path: Path, synced: bool, reading: bool = False) -> None:
    """Close the file, if this process and thread has it open."""
    if (known := _open.pop(_key(path, synced, reading), None)) is not None:
        known.close()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_dev, stat.st_ino
