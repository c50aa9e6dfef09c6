"""The interactions of a site: read from its own file once, prepared as a simulation prepares them, then memory-mapped.

In deployment every message is a process of its own, so the work is done with the first message of a run and its result
kept in the state-dir. A run keeps to what was prepared for it, for the server tells users by their places there; the
next run looks at the file again, and prepares it anew if it has changed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path

import numpy as np

from client_app.homes.site import Site, file_problems
from fedrec.core.errors import ConfigError, DataError, PacketError, StoreError
from fedrec.data.store import open_store, write_store
from fedrec.data.types import Interactions
from fedrec.wire.item_list import ItemList

log = logging.getLogger("fedrec")

_FORMAT = 1
_RUNS_KEPT = 8
_REASONS_SHOWN = 5
_RUN_KEY = re.compile(r"[0-9a-f]{16}")
_MEANING = {
    "unknown_item": "interactions with items that are not in the server's list, left out",
    "low_rating": "interactions rated below min-rating, left out",
    "duplicate": "repeated interactions of a user with an item, the first in time is kept",
    "users_too_short": "users with fewer than 3 interactions, trained but not evaluated",
}


def run_file(folder: Path, run_key: str, suffix: str) -> Path:
    """The file of a run in a folder. Raises PacketError (`malformed`) if the key, which the server sent, is none."""
    if not _RUN_KEY.fullmatch(run_key):
        raise PacketError("malformed", f"a run's key is 16 hexadecimal digits, not {run_key!r}")
    return folder / f"{run_key}{suffix}"


def require_site(site: Site, run_key: str) -> None:
    """Before anything is made there: raise ConfigError with all that is wrong with the site's file and folder.

    Once the data of a run is prepared, its file is needed no more.
    """
    if is_new(site, run_key) and (problems := file_problems(site)):
        raise ConfigError(problems)


def is_new(site: Site, run_key: str) -> bool:
    """Whether the site has nothing of this run yet: nothing was prepared for it."""
    return not run_file(site.state_dir / "prepared", run_key, ".json").exists()


def prepared_data(site: Site, run_key: str, catalogue: str, items: Callable[[], ItemList]) -> Interactions:
    """The site's interactions for a run, in catalogue rows.

    Args:
        site: Where they are.
        run_key: Names the run.
        catalogue: The digest of the server's list of items.
        items: Gives the list; asked only if something has to be prepared.

    Raises ConfigError if the file cannot be used.
    """
    folder = site.state_dir / "prepared"
    known = run_file(folder, run_key, ".json")
    found = _open(site, _read(known).get("store"))
    if found is not None:
        return found
    listed = items()
    source = _source(site, catalogue)
    others = [_read(path) for path in sorted(folder.glob("*.json"))]
    same = next((other["store"] for other in others if other.get("source") == source), None)
    if same is None or _open(site, same) is None:
        try:
            same = write_store(_prepare(site, listed), site.state_dir).name
        except (DataError, StoreError) as error:
            raise ConfigError([str(error)]) from error
    folder.mkdir(parents=True, exist_ok=True)
    _write(known, {"source": source, "store": same})
    _prune(site, folder)
    opened = _open(site, same)
    if opened is None:
        raise StoreError(f"the data that was just prepared in {site.state_dir} cannot be opened: check the disk")
    return opened


def _prepare(site: Site, listed: ItemList) -> Interactions:
    """Read and arrange the file. What is logged of it are totals: no user, no item."""
    # Not needed by any message but the first of a run.
    from fedrec.data.collect import Malformed, collect
    from fedrec.data.prepare import arrange
    from fedrec.data.rows import open_table

    table = open_table(site.interactions, site.separator or None, site.encoding)
    columns, found = site.columns, table.columns
    if missing := [f"{key}='{name}'" for key, name in columns.items() if name not in found]:
        # What the file calls its columns is not repeated: without a header, its first line is somebody's data.
        raise DataError(
            f"{site.interactions} has no column of the name {', '.join(missing)} among its {len(found)}: set these "
            "keys to the names in its first line (time-column='' if it has no times and is in their order)"
        )
    names = [
        columns.get(key, site.user_column) for key in ("user-column", "item-column", "time-column", "rating-column")
    ]
    bad = Malformed("skip")
    raw = collect(
        table.place, table.rows(names, bad), bad, timed=bool(site.time_column), rated=bool(site.rating_column)
    )
    row_of = {item: row for row, item in enumerate(listed.ids)}
    row_of_code = np.array([row_of.get(label, -1) for label in raw.items.labels], dtype=np.int32)
    counts: dict[str, int] = {}
    made = arrange(raw, row_of_code, len(listed.ids), site.min_rating, 0, counts)
    lines = [f"{bad.count:,} lines that could not be read, left out"] if bad.count else []
    lines += [f"{count:,} of them: expected {why}" for why, count in bad.reasons.most_common(_REASONS_SHOWN)]
    lines += [f"{count:,} {_MEANING[rule]}" for rule, count in counts.items()]
    if not made.users:
        raise DataError(
            f"{site.interactions} has no interaction that can be used, of {len(raw.users) + bad.count:,} read: "
            f"{'; '.join(lines) or 'it is empty'}. Check that item ids are written as in the server's list of items"
        )
    log.info("prepared %d users with %d interactions", made.users, len(made.items))
    for line in lines:
        log.info("%s", line)
    return made


def _source(site: Site, catalogue: str) -> str:
    """Names what was prepared: the file as it is now, how it is read, and the list of items."""
    stat = site.interactions.stat()
    values = [_FORMAT, *map(str, astuple(site)), stat.st_size, stat.st_mtime_ns, stat.st_ino, catalogue]
    return hashlib.blake2b(json.dumps(values).encode(), digest_size=16).hexdigest()


def _open(site: Site, store: object) -> Interactions | None:
    if not isinstance(store, str):
        return None
    try:
        return open_store(site.state_dir / "interactions" / store)
    except StoreError:
        return None


def _read(path: Path) -> Mapping[str, object]:
    """What a file of ours says; a damaged one says nothing, and its data is prepared anew."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _write(path: Path, values: Mapping[str, object]) -> None:
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False, encoding="utf-8") as file:
        json.dump(values, file)
    Path(file.name).replace(path)


def _prune(site: Site, folder: Path) -> None:
    """Keep the data of the newest runs."""
    with suppress(OSError):  # another process may prune too
        runs = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for path in runs[:-_RUNS_KEPT]:
            path.unlink()
        used = {_read(path).get("store") for path in runs[-_RUNS_KEPT:]}
        for store in (site.state_dir / "interactions").iterdir():
            if store.name not in used and not store.name.startswith("."):
                shutil.rmtree(store, ignore_errors=True)
