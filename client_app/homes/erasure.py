"""Taking a user out of what a site keeps: its data, its private tensors, and whatever of it is half on the way.

What it has spent of its privacy stays: what was told of it cannot be taken back, and a user who comes again has not a
new budget. So does the mean of many that is in a model: nothing takes one user out of it but training anew.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from client_app.homes.forgotten import key_of, remember
from client_app.stores.last_model import kept_models
from client_app.stores.run_record import ELSEWHERE, read_record, write_record
from client_app.stores.stages import forget_other_runs
from client_app.stores.store import USERS, PrivateStore
from fedrec.core.errors import StoreError
from fedrec.data.store import open_store, verify_store, write_store


class Erased(NamedTuple):
    """What was found of a user, and deleted.

    Attributes:
        key: The opaque key under which it was known.
        interactions: How many interactions it had, over all data that were prepared.
        stores: Data that were prepared anew without it.
        versions: Versions of its private tensors, over all runs.
        models: Models here, to which it may have contributed, and which stay.
        aside: Files that may hold something of it, and cannot be searched: their owner deletes them.
    """

    key: int
    interactions: int
    stores: int
    versions: int
    models: int
    aside: Sequence[str]


def erase(state_dir: Path, user_id: str) -> Erased:
    """Forget a user, now and in all data that will be prepared. No message may be answered meanwhile.

    It can be done again, if it was interrupted, or a message has brought something back.

    Raises StoreError if something cannot be read or written; what was not done yet is done the next time.
    """
    key = key_of(state_dir, user_id)
    remember(state_dir, key, forget=True)  # first: whatever is prepared from now on is without it
    interactions, stores = _out_of_data(state_dir, user_id)
    versions = 0
    if (state_dir / USERS).exists():
        versions = PrivateStore(state_dir, "", {}).forget_users(np.array([key], dtype=np.uint64))
    forget_other_runs(state_dir, "")  # answers between the stages of a secure sum, if it was killed there
    aside = sorted(path.name for path in state_dir.glob(f"{USERS}.damaged-*"))
    return Erased(key, interactions, stores, versions, len(kept_models(state_dir)), aside)


def _out_of_data(state_dir: Path, user_id: str) -> tuple[int, int]:
    """Replace all prepared data that have the user; its interactions, and how many such there were."""
    found, changed = 0, 0
    for folder in sorted((state_dir / "interactions").glob("[!.]*")):
        open_store.cache_clear()
        try:
            verify_store(folder)
        except StoreError:  # the run that uses it prepares it anew
            shutil.rmtree(folder)
            continue
        known = open_store(folder)
        ids = list(known.user_ids)
        if user_id not in ids:
            continue
        place = ids.index(user_id)
        found += int(known.offsets[place + 1] - known.offsets[place])
        others = known.of_users(np.delete(np.arange(len(ids)), place))
        name = write_store(others, state_dir, private=True, elsewhere=ELSEWHERE).name
        for path in (state_dir / "prepared").glob("*.json"):
            record = read_record(path)
            if record is not None and record.store == folder.name:
                write_record(path, replace(record, store=name, source=""))  # no other run may take it for its own
        shutil.rmtree(folder)
        changed += 1
    open_store.cache_clear()
    for scratch in (state_dir / "interactions").glob(".writing-*"):  # of a process that was killed
        with suppress(OSError):
            shutil.rmtree(scratch)
    return found, changed
