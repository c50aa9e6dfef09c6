"""`fedrec runs`: the runs of a folder, chosen by their configuration; and the deletion of some."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from commands.progress import amount, figure
from fedrec.config.describe import flat, to_dict
from fedrec.config.resume import config_in
from fedrec.core.disk import reading, reason, writing
from fedrec.core.errors import ConfigError, FedrecError, StoreError
from fedrec.core.registry import nearest
from fedrec.core.strict_json import parsed_object
from fedrec.evaluation.curves import METRICS
from server_app.run_folder import CONFIG, LOCK, SUMMARY, RunFolder, being_worked_on

FINISHED, RUNNING, INTERRUPTED, DAMAGED = "finished", "running", "interrupted", "damaged"


@dataclass(frozen=True)
class ListedRun:
    """A run that has left a folder.

    Attributes:
        run: The name of its folder.
        state: `finished`; `running`, if a process works on it; `interrupted`, if it can be resumed; `damaged`, if its
            configuration or its summary cannot be read.
        started: When its folder was made, in UTC.
        what: Strategy, embedding, backbone and data set.
        rounds: How many were trained, and of how many.
        ndcg: NDCG@10 at test; None before the end, or if it was not asked for.
        bytes_per_user: All that a user has moved; None before the end.
    """

    run: str
    state: str
    started: str
    what: str
    rounds: tuple[int, int]
    ndcg: float | None
    bytes_per_user: float | None

    def as_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return asdict(self)


def runs_in(folder: Path, filters: Sequence[str]) -> list[ListedRun]:
    """The runs of a folder whose configuration has all of `filters` (`key=value`), the oldest first.

    A run whose configuration cannot be read is listed where nothing is asked of it.

    Raises FedrecError if there is no such folder, or a filter names a key that no run there has.
    """
    return [_kept(path, values) for path, values in _chosen(folder, filters)]


def delete_runs(folder: Path, runs: Sequence[str], filters: Sequence[str] = ()) -> list[str]:
    """Delete the folders of runs by their names, all or none; those that were deleted.

    Raises FedrecError if one of them is no run there, or a process works on it, and if filters are given as well.
    """
    if filters:
        raise FedrecError(f"--delete takes runs by their names, and nothing beside them: leave {' '.join(filters)} out")
    names = [path.name for path in _folders(folder)]
    problems = []
    for run in runs:
        if run not in names:
            problems.append(
                f"--delete {run}: there is no such run in {folder}; {nearest(run, names) if names else 'it has none'}"
            )
        elif being_worked_on(folder / run):
            problems.append(f"--delete {run}: a process is working on it; end that first")
    if problems:
        raise FedrecError("; ".join(problems))
    deleted = list(dict.fromkeys(runs))
    for run in deleted:
        with writing(f"the run folder {folder / run}", "delete it by hand"), RunFolder(folder / run).locked():
            shutil.rmtree(folder / run)
    return deleted


def show_runs(found: Sequence[ListedRun], folder: Path, console: Console) -> None:
    """Print them as a table."""
    if not found:
        console.print(f"no such runs in {folder}", soft_wrap=True, highlight=False, markup=False)
        return
    table = Table(title=Text(f"Runs in {folder}"), title_justify="left")
    for head in ("run", "started (UTC)", "state", "what", "rounds", "NDCG@10", "bytes per user"):
        table.add_column(
            head, justify="right" if head in ("rounds", "NDCG@10", "bytes per user") else "left", overflow="fold"
        )
    for run in found:
        moved = "" if run.bytes_per_user is None else amount(run.bytes_per_user)
        rounds = "/".join(f"{number:,}" for number in run.rounds)
        ndcg = "" if run.ndcg is None else figure(run.ndcg)
        table.add_row(Text(run.run), run.started, run.state, Text(run.what), rounds, ndcg, moved)
    console.print(table)


def _folders(folder: Path) -> list[Path]:
    """The folders of runs that may be looked into, the oldest first.

    A run's folder has its configuration and the lock that every run has made. A link is none: what it leads to belongs
    to somebody else.
    """
    with reading(str(folder), "give the folder in which the runs are with --in"):
        if not folder.is_dir():
            raise FedrecError(f"{folder}: there is no such folder; give the one in which the runs are with --in")
        found = [(started, path) for path in folder.iterdir() if (started := _started(path)) is not None]
        return [path for _, path in sorted(found)]


def _started(path: Path) -> float | None:
    """When a run's folder was made; None if it is no run's, or another account's."""
    try:
        if path.is_symlink() or not (path / LOCK).is_file():
            return None
        return (path / CONFIG).stat().st_mtime
    except OSError:
        return None


def _chosen(folder: Path, filters: Sequence[str]) -> list[tuple[Path, dict[str, Any]]]:
    read = [(path, _values(path)) for path in _folders(folder)]
    wanted = dict(map(_filter, filters))
    known = {key for _, values in read for key in values}
    for key in wanted:
        if known and key not in known:
            raise FedrecError(f"{key}: no run in {folder} has this key; {nearest(key, sorted(known))}")
    return [(path, values) for path, values in read if all(values.get(key) == wanted[key] for key in wanted)]


def _filter(text: str) -> tuple[str, Any]:
    key, found, value = text.partition("=")
    if not found or not key:
        raise FedrecError(f"{text}: expected key=value, such as dataset=ml_1m or embedding.rank=8")
    try:
        found = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise FedrecError(f"{text}: the value cannot be read: {reason(error)}") from error
    if isinstance(found, str):  # YAML takes 1e-5 for a text
        with suppress(ValueError):
            return key, float(found)
    return key, found


def _values(path: Path) -> dict[str, Any]:
    """The configuration as dotted keys; empty if it cannot be read."""
    try:
        return flat(to_dict(config_in(path)))
    except ConfigError:
        return {}


def _kept(path: Path, values: Mapping[str, Any]) -> ListedRun:
    state, summary = _state(path, values)
    parts = [str(values[name]) for name in ("strategy", "embedding", "backbone", "dataset") if name in values]
    planned = int(values.get("strategy.rounds") or 0)
    done = int(summary["rounds"]) if "rounds" in summary else _lines(path / METRICS)
    test, moved = summary.get("test") or {}, summary.get("bytes_per_user") or {}
    started = datetime.fromtimestamp((path / CONFIG).stat().st_mtime, UTC).strftime("%Y-%m-%d %H:%M")
    return ListedRun(
        path.name, state, started, " ".join(parts), (done, planned), test.get("ndcg@10"), moved.get("total")
    )


def _state(path: Path, values: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The state of a run, and its summary if there is one."""
    if being_worked_on(path):
        return RUNNING, {}
    if not values:
        return DAMAGED, {}
    if not (path / SUMMARY).is_file():
        return INTERRUPTED, {}
    try:
        with reading(str(path / SUMMARY), "restore it from a copy"):
            return FINISHED, parsed_object((path / SUMMARY).read_text(encoding="utf-8"))
    except StoreError:
        return DAMAGED, {}


def _lines(path: Path) -> int:
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        return sum(1 for _ in file)
