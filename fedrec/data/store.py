"""Prepared interactions on disk: written once under the name of their content, opened as memory maps by every process.

A store is a folder of plain `.npy` files and one `meta.json`. Opening it reads the offsets and no more: histories are
paged in as they are touched, and external user ids are decoded only when somebody asks.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import shutil
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from fedrec.core.disk import reading, writing
from fedrec.core.errors import StoreError
from fedrec.core.strict_json import parsed_object
from fedrec.data.types import Interactions

FORMAT = 1
_DTYPES = {"offsets": "<i8", "items": "<i4", "user_ids": "|u1", "user_id_offsets": "<i8"}
_CUTS = "cuts"
"""A column that is there with a split by time alone, `<i8`: two numbers a user, one after the other."""
_MEND = "delete the folder and prepare the data again"
ELSEWHERE = "set cache_dir to a folder that may be read and written and has room"


class UserIds(Sequence[str]):
    """External user ids that stay encoded (UTF-8 bytes and offsets) until they are asked for."""

    def __init__(self, encoded: NDArray[np.uint8], offsets: NDArray[np.int64]) -> None:
        self.encoded = encoded
        self.offsets = offsets

    @classmethod
    def of(cls, user_ids: Sequence[str]) -> UserIds:
        """Encode `user_ids`; what is encoded already is taken as it is."""
        if isinstance(user_ids, UserIds):
            return user_ids
        encoded = [user_id.encode() for user_id in user_ids]
        offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
        np.cumsum([len(user_id) for user_id in encoded], out=offsets[1:])
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        if isinstance(index, slice):
            return tuple(self[position] for position in range(*index.indices(len(self))))
        position = range(len(self))[index]
        return self.encoded[self.offsets[position] : self.offsets[position + 1]].tobytes().decode()


def content_digest(interactions: Interactions) -> str:
    """32 hexadecimal digits that name offsets, items and user ids; equal on every machine."""
    digest = hashlib.blake2b(digest_size=16)
    for name, column in _columns(interactions).items():
        digest.update(f"{name}:{len(column)};".encode())
        digest.update(column.data)
    return digest.hexdigest()


def write_store(
    interactions: Interactions, cache_dir: Path, *, private: bool = False, elsewhere: str = ELSEWHERE
) -> Path:
    """Write `interactions` under `cache_dir` and return the folder, whose name is the content digest.

    A sound store of the same content is left as it is, a damaged one is replaced. A folder appears whole or not at all.

    Args:
        interactions: What is stored.
        cache_dir: The folder of all stores.
        private: Only the owner may read it, for it is a site's own. Otherwise the account's umask says who may: a cache
            may be shared, and holds nothing that the data set does not.
        elsewhere: What to do if the disk refuses it, as `fedrec.core.disk.writing` takes it.

    Raises:
        StoreError: The folder cannot be written.
    """
    digest = content_digest(interactions)
    folder = cache_dir / "interactions" / digest
    with writing(f"the prepared interactions {folder}", elsewhere):
        if folder.exists():
            with contextlib.suppress(StoreError):
                verify_store(folder)
                return folder
        folder.parent.mkdir(0o700 if private else 0o777, parents=True, exist_ok=True)
        scratch = folder.with_name(f".writing-{secrets.token_hex(4)}")
        scratch.mkdir(0o700 if private else 0o777)
        try:
            columns = _columns(interactions)
            for name, column in columns.items():
                np.save(scratch / f"{name}.npy", column, allow_pickle=False)
            lengths = {name: len(column) for name, column in columns.items()}
            (scratch / "meta.json").write_text(json.dumps({"format": FORMAT, "digest": digest, "lengths": lengths}))
            _put_in_place(scratch, folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    open_store.cache_clear()
    return folder


@lru_cache(maxsize=8)
def open_store(folder: Path) -> Interactions:
    """Open a store for reading, as memory maps, once in a process.

    Raises:
        StoreError: The folder is not there, was written by another version, or is damaged (sizes are checked, and
            `verify_store` checks the content too).
    """
    with reading(f"the prepared interactions {folder}", _MEND):
        if not folder.is_dir():
            raise StoreError(f"there are no prepared interactions in {folder}: prepare the data on this machine first")
    meta = _meta(folder)
    columns = {name: _open_column(folder, name, meta) for name in meta["lengths"]}
    for name, values in (("offsets", "items"), ("user_id_offsets", "user_ids")):
        bounds = columns[name]
        if len(bounds) == 0 or bounds[0] != 0 or bounds[-1] != len(columns[values]) or (np.diff(bounds) < 0).any():
            raise StoreError(f"{folder / name}.npy does not fit {values}.npy: it is damaged; {_MEND}")
    if len(columns["offsets"]) != len(columns["user_id_offsets"]):
        raise StoreError(f"{folder}: the number of user ids is not the number of users: it is damaged; {_MEND}")
    offsets, cuts = columns["offsets"], columns.get(_CUTS)
    if cuts is not None:
        if len(cuts) != 2 * (len(offsets) - 1):
            raise StoreError(f"{folder}: its cuts are not two for each user: it is damaged; {_MEND}")
        cuts = cuts.reshape(-1, 2)
        if ((offsets[:-1] > cuts[:, 0]) | (cuts[:, 0] > cuts[:, 1]) | (cuts[:, 1] > offsets[1:])).any():
            raise StoreError(f"{folder}: a cut lies outside of its user's history: it is damaged; {_MEND}")
    return Interactions(UserIds(columns["user_ids"], columns["user_id_offsets"]), offsets, columns["items"], cuts)


def open_verified_store(folder: Path, n_items: int) -> Interactions:
    """Open a store whose whole content was read and compared with its digest just now.

    Raises StoreError if it is damaged, or has items that no catalogue of `n_items` rows has.
    """
    try:
        verify_store(folder)
    except StoreError:
        open_store.cache_clear()
        raise
    opened = open_store(folder)
    if len(opened.items) and not 0 <= int(opened.items.min()) <= int(opened.items.max()) < n_items:
        raise StoreError(
            f"{folder} has items {opened.items.min()} to {opened.items.max()}, the catalogue has {n_items} rows: they "
            "do not belong together"
        )
    return opened


def verify_store(folder: Path) -> None:
    """Read the whole store and compare it with its digest. Raises StoreError."""
    found = content_digest(open_store.__wrapped__(folder))
    expected = _meta(folder)["digest"]
    if found != expected or folder.name != expected:
        raise StoreError(f"{folder} is damaged: its content has digest {found}, {expected} was written; {_MEND}")


def _columns(interactions: Interactions) -> dict[str, NDArray[Any]]:
    user_ids = UserIds.of(interactions.user_ids)
    columns = {
        "offsets": interactions.offsets,
        "items": interactions.items,
        "user_ids": user_ids.encoded,
        "user_id_offsets": user_ids.offsets,
    }
    if interactions.cuts is not None:
        columns[_CUTS] = interactions.cuts.reshape(-1)
    return {name: np.ascontiguousarray(column, dtype=_dtype(name)) for name, column in columns.items()}


def _dtype(name: str) -> str:
    return "<i8" if name == _CUTS else _DTYPES[name]


def _put_in_place(scratch: Path, folder: Path) -> None:
    for attempt in range(2):
        try:
            scratch.rename(folder)
            return
        except OSError:
            # Either another process was faster with the same content, or a damaged store lies there.
            if not folder.is_dir():
                raise
            with contextlib.suppress(StoreError):
                verify_store(folder)
                return
            if attempt:
                raise
            shutil.rmtree(folder)


def _meta(folder: Path) -> dict[str, Any]:
    path = folder / "meta.json"
    with reading(str(path), _MEND):
        meta = parsed_object(path.read_text())
        version, lengths = meta["format"], meta["lengths"]
        if version == FORMAT:
            names = [*_DTYPES, *([_CUTS] if _CUTS in lengths else [])]
            return {"digest": str(meta["digest"]), "lengths": {name: int(lengths[name]) for name in names}}
    raise StoreError(f"{path} has format {version!r}, this version of fedrec reads {FORMAT}; {_MEND}")


def _open_column(folder: Path, name: str, meta: dict[str, Any]) -> NDArray[Any]:
    path, dtype, length = folder / f"{name}.npy", np.dtype(_dtype(name)), meta["lengths"][name]
    try:
        column = np.asarray(np.load(path, mmap_mode="r" if length else None, allow_pickle=False))
    except Exception as error:  # numpy reads a damaged header with Python's tokeniser, which raises errors of its own
        raise StoreError(f"cannot open {path} ({error}): it is missing or truncated; {_MEND}") from error
    if column.dtype != dtype or column.shape != (length,):
        raise StoreError(
            f"{path} holds {column.dtype} {list(column.shape)}, expected {dtype} [{length}]: it is damaged; {_MEND}"
        )
    return column
