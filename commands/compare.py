"""`fedrec compare`: finished runs side by side, and what it took each to come near a ceiling."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from commands.list_figures import FIGURES, KEY, at
from commands.progress import amount, duration, figure
from fedrec.core.disk import reading
from fedrec.core.errors import FedrecError
from fedrec.core.strict_json import number, parsed_object
from fedrec.evaluation.curves import SECONDS, WAYS, Point, curve, reached, read_records
from fedrec.evaluation.over_groups import MEAN, SPREAD, WORST, over_groups

METRIC = "ndcg@10"
HIT_RATE = "hr@10"
SHARES = (90, 95, 99)
"""Of the ceiling, in percent."""

_SUMMARY, _MANIFEST = "summary.json", "manifest.json"


@dataclass(frozen=True)
class Run:
    """A finished run, or a finished baseline.

    Attributes:
        name: Tells it from the others.
        summary: Its `summary.json`.
        points: Its curve; empty if it was not validated on the way.
        data: Names the data that it is about; None if that is not known.
    """

    name: str
    summary: Mapping[str, Any]
    points: Sequence[Point]
    data: tuple[str, ...] | None

    @property
    def bytes(self) -> Mapping[str, float] | None:
        """Bytes of one user in the mean, by `WAYS`; None for a baseline, which sends nothing."""
        moved = self.summary.get("bytes_per_user")
        return None if moved is None else {way: number(moved.get(way, 0.0)) for way in WAYS}

    @property
    def seconds(self) -> float | None:
        """Simulated seconds of all its rounds; None if no network was simulated."""
        return number(self.summary[SECONDS]) if SECONDS in self.summary else None

    @property
    def groups(self) -> Mapping[str, float]:
        """Its test NDCG@10 over groups: mean, worst and standard deviation; empty for a run without groups."""
        groups: Mapping[str, Any] = self.summary.get("groups", {})
        each = {name: {METRIC: number(found["test"][METRIC])} for name, found in groups.items() if "test" in found}
        return over_groups(each)[METRIC] if each else {}

    @property
    def lists(self) -> Mapping[str, float]:
        """What its lists of ten are like, beside right; empty where that was not worked out."""
        found = at(self.summary.get(KEY, {}))
        return {name: number(value) for name, value in found.items()}

    @property
    def best(self) -> float:
        """The best validation that is known of it; 0 if it trained without."""
        return max([self.validation or 0.0, *(point.value for point in self.points)])

    @property
    def validation(self) -> float | None:
        """Its last validation; None if it trained without."""
        found = self.summary["validation"]
        return number(found[METRIC]) if found else None


@dataclass(frozen=True)
class Ceiling:
    """What the runs are measured by: a validation NDCG@10, whose it is, and the data that it is about, if known."""

    value: float
    source: str
    data: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Comparison:
    """Runs and the ceiling."""

    runs: Sequence[Run]
    ceiling: Ceiling

    def target(self, share: int) -> float:
        """NDCG@10 at `share` percent of the ceiling."""
        return self.ceiling.value * share / 100

    def as_dict(self) -> dict[str, Any]:
        """For JSON. A target that a run did not reach is null."""
        ceiling = {"value": self.ceiling.value, "source": self.ceiling.source}
        return {"metric": METRIC, "ceiling": ceiling, "runs": [self._run(run) for run in self.runs]}

    def _run(self, run: Run) -> dict[str, Any]:
        points = {share: reached(run.points, self.target(share)) for share in SHARES}
        return {
            "run": run.name,
            "test": {name: run.summary["test"][name] for name in (METRIC, HIT_RATE)},
            "validation": run.validation,
            **({"over_groups": dict(run.groups)} if run.groups else {}),
            **({KEY: run.lists} if run.lists else {}),
            "rounds": run.summary["rounds"],
            "seconds": run.summary["seconds"],
            "bytes_per_user": None if run.bytes is None else dict(run.bytes),
            SECONDS: run.seconds,
            "to_reach": {str(share): point and _as_dict(point) for share, point in points.items()},
        }


def _as_dict(point: Point) -> dict[str, float | None]:
    """What it took to come to a point."""
    moved = None if point.bytes is None else point.bytes["total"]
    return {"round": point.round, "bytes": moved, SECONDS: point.seconds}


def compare(paths: Sequence[str], ceiling: str | None) -> Comparison:
    """Read the runs, folders or kept JSON files, and find the ceiling.

    Args:
        paths: Of the runs, in the order in which they are shown.
        ceiling: A run, whose best validation it is, or a number; None: the best of `paths`.

    Raises FedrecError if one is not there, has not ended, or was not ranked at a cut-off of 10, and if the ceiling
    would be a run without validation.
    """
    runs = _distinct([read_run(Path(path)) for path in paths], paths)
    if ceiling is None:
        best = max(runs, key=lambda run: run.best)
        return Comparison(runs, _ceiling(best, f"the best of these runs, {best.name}"))
    given = _given(ceiling)
    if given is not None:
        return Comparison(runs, Ceiling(given, "as given"))
    named = read_run(Path(ceiling))
    return Comparison(runs, _ceiling(named, named.name))


def _ceiling(run: Run, source: str) -> Ceiling:
    if not run.best:
        raise FedrecError(f"{run.name} has no validation to be a ceiling: name a run that has, or give a number")
    return Ceiling(run.best, source, run.data)


def _given(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    if not (math.isfinite(value) and 0 < value <= 1):
        raise FedrecError(f"--ceiling {text}: an NDCG@10 lies between 0 and 1; give one, or a run")
    return value


def read_run(path: Path) -> Run:
    """A run from its folder, or from the JSON file as which it is kept. Raises FedrecError if that cannot be."""
    with reading(f"{path} cannot be read as a run: it", "restore its files, or leave it out"):
        if not path.exists():
            raise FedrecError(f"{path}: there is no such run; give the folder of a run, or a kept run as a JSON file")
        if path.is_dir():
            if not (path / _SUMMARY).exists():
                raise FedrecError(f"{path} holds no finished run: it has no {_SUMMARY}")
            summary = _json(path / _SUMMARY)
            return _checked(Run(path.resolve().name, summary, _points(read_records(path), summary), _data(path)), path)
        kept = _json(path)
        summary = kept["summary"]
        return _checked(Run(str(kept["name"]), summary, _points(kept.get("curve", []), summary), None), path)


def _points(records: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> list[Point]:
    """The curve; of a federated run that has none, its end."""
    found = curve(records, METRIC)
    ended = {"round": summary["rounds"], **summary}
    return found if found or "bytes_per_user" not in summary else curve([ended], METRIC)


def _json(path: Path) -> dict[str, Any]:
    with reading(f"{path} cannot be read as a run: it", "restore its files, or leave it out"):
        return parsed_object(path.read_text(encoding="utf-8"))


def _data(folder: Path) -> tuple[str, ...] | None:
    if not (folder / _MANIFEST).exists():
        return None
    data = _json(folder / _MANIFEST)["data"]
    return str(data["catalogue"]), str(data["interactions"]), str(data["validation"])


def _checked(run: Run, path: Path) -> Run:
    for split in ("test", "validation"):
        found = run.summary[split]
        missing = [name for name in (METRIC, HIT_RATE) if name not in found]
        if missing and (found or split == "test"):
            raise FedrecError(f"{path}: its {split} has no {missing[0]}; runs are compared with 10 in evaluation.ks")
        if found:  # what diverged has null there, and no figure to be compared
            _ = [number(found[name]) for name in (METRIC, HIT_RATE)]
    _ = (
        number(run.summary["seconds"]),
        int(number(run.summary["rounds"])),
        run.bytes,
        run.seconds,
        run.groups,
        run.lists,
    )
    return run


def _distinct(runs: Sequence[Run], paths: Sequence[str]) -> list[Run]:
    """The runs, those of equal names named by their paths."""
    count = Counter(run.name for run in runs)
    return [run if count[run.name] == 1 else replace(run, name=path) for run, path in zip(runs, paths, strict=True)]


def show_comparison(found: Comparison, console: Console) -> None:
    """Print what the runs came to and cost, and what it took them to come near the ceiling."""
    console.print(_results(found.runs))
    if any(run.groups for run in found.runs):
        console.print(_groups(found.runs))
    if any(run.lists for run in found.runs):
        console.print(_lists(found.runs))
    console.print(_traffic(found.runs))
    console.print(_targets(found))
    if any(run.seconds is not None for run in found.runs):
        console.print(_times(found))
    ceiling = found.ceiling
    console.print(f"ceiling: validation NDCG@10 {ceiling.value:.4f}, {ceiling.source}", soft_wrap=True, markup=False)
    for run in found.runs:
        if len(run.points) == 1 and run.bytes is not None:
            text = f"Of {run.name} only one validation is known: give evaluation.every, and keep runs with their curves"
            console.print(text, soft_wrap=True, markup=False)
    if len({data for data in (ceiling.data, *(run.data for run in found.runs)) if data is not None}) > 1:
        console.print("These runs are not about the same data: their figures do not compare.", style="bold yellow")


def _results(runs: Sequence[Run]) -> Table:
    table = _table("Test, full ranking", ("NDCG@10", "HR@10", "rounds", "time"))
    for run in runs:
        test, rounds = run.summary["test"], f"{run.summary['rounds']:,}"
        seconds = duration(float(run.summary["seconds"]))
        table.add_row(Text(run.name), f"{test[METRIC]:.4f}", f"{test[HIT_RATE]:.4f}", rounds, seconds)
    return table


def _groups(runs: Sequence[Run]) -> Table:
    table = _table("Test NDCG@10 over groups", ("groups", "mean", "worst", "standard deviation"))
    for run in runs:
        cells = [f"{run.groups[name]:.4f}" for name in (MEAN, WORST, SPREAD)] if run.groups else ["-"] * 3
        table.add_row(Text(run.name), str(len(run.summary.get("groups", ())) or "-"), *cells)
    return table


def _lists(runs: Sequence[Run]) -> Table:
    table = _table("Test, beyond accuracy, in lists of 10", FIGURES)
    for run in runs:
        table.add_row(Text(run.name), *(figure(run.lists.get(name)) for name in FIGURES))
    return table


def _traffic(runs: Sequence[Run]) -> Table:
    table = _table("Bytes per user, all rounds", ("up", "down", "one-time", "total"))
    for run in runs:
        moved = run.bytes
        counts = [] if moved is None else [moved["up"], moved["down"], moved["one_time"] + moved["merges"]]
        ways = [amount(count) for count in (*counts, sum(counts))] if counts else ["-"] * 4
        table.add_row(Text(run.name), *ways)
    return table


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("run", overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _shares(found: Comparison) -> list[str]:
    return [f"{share} %: {found.target(share):.4f}" for share in SHARES]


def _times(found: Comparison) -> Table:
    table = _table("Simulated time to a share of the ceiling, at validation", [*_shares(found), "total"])
    for run in found.runs:
        reach = [_time(run, found.target(share)) for share in SHARES]
        table.add_row(Text(run.name), *reach, "-" if run.seconds is None else simulated(run.seconds))
    return table


def _time(run: Run, target: float) -> str:
    point = reached(run.points, target)
    if run.seconds is None or (point is not None and point.seconds is None):
        return "-"
    return "not reached" if point is None or point.seconds is None else simulated(point.seconds)


def simulated(seconds: float) -> str:
    """Simulated seconds, short ones with a decimal: `8.5 s`, `3:05 min`."""
    return f"{seconds:.1f} s" if seconds < 100 else duration(seconds)


def _targets(found: Comparison) -> Table:
    table = _table("Bytes per user and rounds to a share of the ceiling, at validation", _shares(found))
    for run in found.runs:
        table.add_row(Text(run.name), *(_reach(run, found.target(share)) for share in SHARES))
    return table


def _reach(run: Run, target: float) -> str:
    point = reached(run.points, target)
    if point is None:
        return "not reached" if run.points else "-"
    return f"round {point.round:,}" if point.bytes is None else f"{amount(point.bytes['total'])}, round {point.round:,}"
