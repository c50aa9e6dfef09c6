"""The interactions of a site: read from its own file once, prepared as a simulation prepares them, then memory-mapped.

In deployment every message is a process of its own, so the work is done with the first message of a run and its result
kept in the state-dir. A run keeps to what was prepared for it, for the server tells users by their places there; the
next run looks at the file again, and prepares it anew if it has changed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import astuple, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from client_app.homes.forgotten import forgotten, without_forgotten
from client_app.homes.site import Site, file_problems, folder_problems
from client_app.stores.losses import DATA_DAMAGED, SECRET_CHANGED, Losses
from client_app.stores.run_record import (
    ELSEWHERE,
    RunRecord,
    contradictions,
    read_record,
    record_file,
    write_record,
)
from fedrec.core.errors import ConfigError, DataError, PacketError, StoreError
from fedrec.data.store import open_verified_store, write_store
from fedrec.data.types import Interactions
from fedrec.wire.item_list import ItemList

log = logging.getLogger("fedrec")

"""What to do with a state-dir that the disk refuses, as `fedrec.core.disk.writing` takes it."""

_FORMAT = 1
_RUNS_KEPT = 8
_REASONS_SHOWN = 5
_MEANING = {
    "unknown_item": "interactions with items that are not in the server's list, left out",
    "low_rating": "interactions rated below min-rating, left out",
    "duplicate": "repeated interactions of a user with an item, the first in time is kept",
    "forgotten": "users who are forgotten here (fedrec forget), left out",
    "users_too_short": "users with fewer than 3 interactions, trained but not evaluated",
}


def require_site(site: Site, run_key: str) -> None:
    """Before anything is made there: raise ConfigError with all that is wrong with the site's file and folder.

    Once the data of a run is prepared, its file is needed no more.
    """
    problems = file_problems(site) if is_new(site, run_key) else folder_problems(site)
    if problems:
        raise ConfigError(problems)


def require_same_setup(site: Site, run_key: str, setup: str) -> None:
    """Raise PacketError (`malformed`) if a setup contradicts what the site was told when it joined the run."""
    record = read_record(record_file(site.state_dir, run_key))
    if record is not None and (keys := contradictions(record, setup)):
        raise PacketError(
            "malformed",
            f"the setup of run {run_key} is another than when this site joined it ({', '.join(keys)}): a run keeps to "
            "its setup; for another one start another run",
        )


def mark_ended(site: Site, run_key: str, round: int) -> None:
    """Remember that the run's test was answered after this round, or a later one. Raises OSError."""
    path = record_file(site.state_dir, run_key)
    record = read_record(path)
    if record is not None and record.ended < round:
        write_record(path, replace(record, ended=round))


def ended(site: Site, run_key: str) -> int:
    """The round after which the run's test was answered; 0: it was not, or nothing is known of the run."""
    record = read_record(record_file(site.state_dir, run_key))
    return 0 if record is None else record.ended


def is_new(site: Site, run_key: str) -> bool:
    """Whether the site has nothing of this run yet: nothing was prepared for it."""
    return not record_file(site.state_dir, run_key).exists()


class Told(NamedTuple):
    """What was told of a run, and under which secret.

    Attributes:
        run_key: Names the run.
        catalogue: The digest of the server's list of items.
        n_items: How many these are.
        setup: The whole setup, as JSON.
        secret: Names the site's secret.
    """

    run_key: str
    catalogue: str
    n_items: int
    setup: str
    secret: str


def prepared_data(site: Site, told: Told, items: Callable[[], ItemList], losses: Losses) -> Interactions:
    """The site's interactions for a run, in catalogue rows, as they were prepared: each byte is compared.

    What is damaged is prepared anew from the site's own file; that is logged and counted.

    Args:
        site: Where they are.
        told: The run.
        items: Gives the list; asked only if something has to be prepared.
        losses: Where it is counted if what was prepared is damaged, or the secret has changed.

    Raises:
        ConfigError: The file cannot be used.
        PacketError: `malformed`: the setup contradicts that which was told when the site joined.
    """
    known, n_items = record_file(site.state_dir, told.run_key), told.n_items
    record = read_record(known)
    if record is not None:
        require_same_setup(site, told.run_key, told.setup)
        if record.secret != told.secret:
            log.error(
                "the secret in %s is another than when this site joined the run: its users are known by other keys, "
                "and start anew; put the old file back if you have it",
                site.state_dir,
            )
            losses[SECRET_CHANGED] += 1
            record = replace(record, secret=told.secret)
            write_record(known, record)
    damage: StoreError | None = None
    if known.exists():
        try:
            if record is None:
                raise StoreError(f"{known} is not what was written there")
            return _open(site, record.store, n_items)
        except StoreError as error:
            damage = error
            if problems := file_problems(site):
                raise ConfigError(
                    [f"the prepared data of this run is damaged ({error}) and cannot be prepared anew", *problems]
                ) from error
    listed = items()
    if damage is not None:
        log.error("%s. This site's data is prepared anew from %s", damage, site.interactions)
        losses[DATA_DAMAGED] += 1
    try:
        source = _source(site, told.catalogue)
    except DataError as error:
        raise ConfigError([str(error)]) from error
    store = _prepared_before(site, source, n_items)
    if store is None:
        try:
            store = write_store(_prepare(site, listed), site.state_dir, private=True, elsewhere=ELSEWHERE).name
        except (DataError, StoreError) as error:
            raise ConfigError([str(error)]) from error
    ended = 0 if record is None else record.ended
    write_record(known, RunRecord(source, store, n_items, told.secret, told.setup, ended))
    _prune(site, known.parent)
    try:
        return _open(site, store, n_items)
    except StoreError as error:
        raise StoreError(f"the data that was just prepared cannot be used: check the disk ({error})") from error


def _prepared_before(site: Site, source: str, n_items: int) -> str | None:
    """The sound data of another run that were made of the same file and list."""
    for path in sorted((site.state_dir / "prepared").glob("*.json")):
        record = read_record(path)
        if record is not None and record.source == source:
            with suppress(StoreError):
                _open(site, record.store, n_items)
                return record.store
    return None


def _prepare(site: Site, listed: ItemList) -> Interactions:
    """Read and arrange the file. What is logged of it are totals: no user, no item."""
    # Not needed by any message but the first of a run.
    from fedrec.data.collect import Malformed
    from fedrec.data.prepare import arrange
    from fedrec.data.tables import interactions_in, open_table

    table = open_table(site.interactions, site.form)
    columns = site.read_columns
    asked = list(columns.values())
    # What the file calls its columns is not repeated: without a header, its first line is somebody's data.
    if table.starts_with_data(asked):
        raise DataError(
            f"{site.interactions}: the first line looks like data and not like the names of columns. If the file has "
            f"no header line, name its columns in their order, as in {site.form.naming()}, and ask for them by those "
            f"names ({', '.join(columns)})"
        )
    if absent := table.absent(asked):
        missing = ", ".join(f"{key}='{name}'" for key, name in columns.items() if name in absent)
        raise DataError(
            f"{site.interactions} has no column of the name {missing} among its {len(table.columns)}: set these "
            "keys to the names in its first line (time-column='' if it has no times and is in their order); "
            + "; ".join(table.hints(absent))
        )
    names = [
        columns.get(key, site.user_column) for key in ("user-column", "item-column", "time-column", "rating-column")
    ]
    bad = Malformed("skip")
    raw = interactions_in(table, names, bad, timed=bool(site.time_column), rated=bool(site.rating_column))
    row_of = {item: row for row, item in enumerate(listed.ids)}
    row_of_code = np.array([row_of.get(label, -1) for label in raw.items.labels], dtype=np.int32)
    counts: dict[str, int] = {}
    made = arrange(raw, row_of_code, len(listed.ids), site.min_rating, 0, counts)
    arranged = made.users
    made = without_forgotten(made, site.state_dir)
    if gone := arranged - made.users:
        counts["forgotten"] = gone
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
    from fedrec.data.parts import files_of
    from fedrec.data.reading import reading

    with reading(site.interactions, "file"):
        stats = [(str(path), path.stat()) for path in files_of(site.interactions)]
    files = [(path, stat.st_size, stat.st_mtime_ns, stat.st_ino) for path, stat in stats]
    values = [_FORMAT, *map(str, astuple(replace(site, policy=None))), files, catalogue, *forgotten(site.state_dir)]
    return hashlib.blake2b(json.dumps(values).encode(), digest_size=16).hexdigest()


def _open(site: Site, store: str, n_items: int) -> Interactions:
    """Prepared data, compared with what was prepared. Raises StoreError."""
    return open_verified_store(site.state_dir / "interactions" / store, n_items)


def _prune(site: Site, folder: Path) -> None:
    """Keep the data of the newest runs."""
    with suppress(OSError):  # another process may prune too
        runs = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for path in runs[:-_RUNS_KEPT]:
            path.unlink()
        records = [read_record(path) for path in runs[-_RUNS_KEPT:]]
        used = {record.store for record in records if record is not None}
        for store in (site.state_dir / "interactions").iterdir():
            if store.name not in used and not store.name.startswith("."):
                shutil.rmtree(store, ignore_errors=True)
