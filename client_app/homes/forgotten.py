"""Who is forgotten at a site: left out of all data that are prepared from then on, whatever the site's file has.

The list holds opaque keys, which tell nobody's id to who does not know the site's secret, in `forgotten.json` in the
state-dir.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from fedrec.core.disk import reading, writing
from fedrec.core.keys import opaque_keys
from fedrec.core.secret import own_secret
from fedrec.core.whole_files import write_text
from fedrec.data.types import Interactions

FORGOTTEN = "forgotten.json"
_KEY = re.compile("[0-9a-f]{16}")


def key_of(state_dir: Path, user_id: str) -> int:
    """The key under which a user is known here. Raises StoreError if the secret cannot be read."""
    return int(opaque_keys(own_secret(state_dir), [user_id])[0])


def forgotten(state_dir: Path) -> list[str]:
    """The keys of all who are forgotten, in hexadecimal, ascending. Raises StoreError if the list is damaged."""
    path = state_dir / FORGOTTEN
    if not path.exists():
        return []
    with reading(f"{path}, in which is who is forgotten here,", "put it back from a copy"):
        keys = json.loads(path.read_text(encoding="ascii"))
        if not isinstance(keys, list) or not all(isinstance(key, str) and _KEY.fullmatch(key) for key in keys):
            raise ValueError("not a list of keys")
    return sorted(keys)


def remember(state_dir: Path, key: int, *, forget: bool) -> None:
    """Put a key onto the list, or take it off. Raises StoreError if it cannot be read or written."""
    keys = set(forgotten(state_dir)) - {f"{key:016x}"}
    kept = sorted(keys | {f"{key:016x}"} if forget else keys)
    with writing(str(state_dir / FORGOTTEN), "make room in the state-dir"):
        write_text(state_dir / FORGOTTEN, json.dumps(kept) + "\n", private=True, synced=True)


def without_forgotten(interactions: Interactions, state_dir: Path) -> Interactions:
    """The interactions of all others. Raises StoreError if list or secret cannot be read."""
    keys = forgotten(state_dir)
    if not keys:
        return interactions
    own = opaque_keys(own_secret(state_dir), interactions.user_ids)
    gone = np.isin(own, np.array([int(key, 16) for key in keys], dtype=np.uint64))
    return interactions if not gone.any() else interactions.of_users(np.flatnonzero(~gone))
