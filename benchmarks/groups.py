"""Groups with models of their own: the kept runs of `strategy=fellrec` as tables.

    python -m benchmarks.groups               write the tables into docs/fellrec.md
    python -m benchmarks.groups --check       exit 1 if the page has other tables
    python -m benchmarks.groups --keep RUNS   keep the finished runs in the folder RUNS, compared user by user

RUNS holds the folders of runs, each called DATA-GROUPING-MIXING-SEED, as in `ml1m-centroids-fedavg-0`. Each is kept as
a JSON file of that name, and what the runs of one DATA-GROUPING are ahead of each other in `paired/DATA-GROUPING.json`.
Those whose DATA begins with `search-` were validated to choose a rate, which MIXING names, and are not compared. The
folder `tried` has runs of rules that were not kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from benchmarks import documents
from benchmarks.own_share import FOLDER as OWN_SHARE
from benchmarks.paired_groups import Ahead, Gains, gains, of_worst, over_all, over_groups, over_seeds
from benchmarks.results_table import RESULTS, ROOT, kept
from fedrec.evaluation.over_groups import MEAN, SPREAD, WORST
from fedrec.evaluation.over_groups import over_groups as summed

PAGE = ROOT / "docs" / "fellrec.md"
FOLDER = RESULTS / "groups"
AGAINST = "fedavg"
"""The mixing with which the others are compared."""

_DATA = {"ml1m": "MovieLens 1M", "industrial": "Amazon Industrial"}
_COLUMNS: Mapping[str, Callable[[Gains, Gains], Ahead]] = {
    "all": over_all,
    MEAN: over_groups,
    WORST: of_worst,
}
_METRIC = "ndcg@10"
_ROUNDING = 1e-6
_HEAD = (
    "| mixing | validation, all users | test, all users | mean of the groups | worst group | standard deviation | "
    "bytes per user |\n|---|---:|---:|---:|---:|---:|---:|\n"
)
_VALIDATED = (
    "\n| {} | validation, all users | mean of the groups | worst group | standard deviation |\n"
    "|{}|---:|---:|---:|---:|\n"
)
_OWN_SHARE_HEAD = (
    "\n| data, groups, seed | share of each group | worst group, pooled | with the shares | "
    "ahead of pooled, all users | mean of the groups | worst group |\n|---|---|---:|---:|---:|---:|---:|\n"
)
_PAIRED = f"| mixing | ahead of {AGAINST}, all users | mean of the groups | worst group |\n|---|---:|---:|---:|\n"


class Name(NamedTuple):
    """What a kept run is of, by its name."""

    data: str
    grouping: str
    mixing: str
    seed: str

    @staticmethod
    def of(text: str) -> Name:
        """Raises SystemExit if it is not DATA-GROUPING-MIXING-SEED."""
        parts = text.rsplit("-", 3)
        if len(parts) != 4:
            raise SystemExit(f"{text}: expected a run called DATA-GROUPING-MIXING-SEED")
        return Name(*parts)


def keep(runs: Path) -> None:
    """Keep all finished runs of a folder, and compare those of the same data, groups and seed."""
    folders = {Name.of(path.parent.name): path.parent for path in sorted(runs.glob("*/summary.json"))}
    (FOLDER / "paired").mkdir(parents=True, exist_ok=True)
    found: dict[Name, Gains] = {}
    for name, folder in folders.items():
        run = kept(folder.name, folder)
        _write(FOLDER / f"{folder.name}.json", run)
        if not name.data.startswith("search"):
            found[name] = gains(folder)
            if abs(float(found[name].ndcg.mean()) - run["summary"]["test"][_METRIC]) > _ROUNDING:
                raise SystemExit(f"{folder}: ranked anew its users do not bring what its summary says")
    for data, grouping in sorted({(name.data, name.grouping) for name in found}):
        mine = {name: each for name, each in found.items() if (name.data, name.grouping) == (data, grouping)}
        _write(FOLDER / "paired" / f"{data}-{grouping}.json", _compared(mine))


def _compared(found: Mapping[Name, Gains]) -> dict[str, Any]:
    """By mixing and column what it is ahead of `AGAINST`, over the seeds that both have."""
    compared = {}
    for mixing in sorted({name.mixing for name in found} - {AGAINST}):
        pairs = [
            (each, found[name._replace(mixing=AGAINST)])
            for name, each in found.items()
            if name.mixing == mixing and name._replace(mixing=AGAINST) in found
        ]
        compared[mixing] = {
            column: over_seeds([ahead(*pair) for pair in pairs])._asdict() for column, ahead in _COLUMNS.items()
        } | {"seeds": len(pairs)}
    return compared


def _write(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    print(f"kept {path.relative_to(ROOT)}")


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def tables() -> dict[str, str]:
    """The blocks of the page: a table of results and one of differences for each data set and grouping."""
    runs = {Name.of(path.stem): _read(path)["summary"] for path in sorted(FOLDER.glob("*.json"))}
    return {"groups": _results(runs), "search": _search(runs), "tried": _tried(), "own-share": _own_share()}


def _results(runs: Mapping[Name, Mapping[str, Any]]) -> str:
    parts = []
    for data, grouping in sorted({(name.data, name.grouping) for name in runs if name.data in _DATA}, reverse=True):
        mine = {name: run for name, run in runs.items() if (name.data, name.grouping) == (data, grouping)}
        seeds = len({name.seed for name in mine})
        users = _sizes(next(iter(mine.values())))
        told = f"{seeds} seeds" if seeds > 1 else "one seed"
        parts.append(f"**{_DATA[data]}, `grouping={grouping}`**, {told}; with the first, groups of {users} users\n")
        rows = [_row(mixing, of_mixing(mine, mixing)) for mixing in sorted({name.mixing for name in mine})]
        paired = _read(FOLDER / "paired" / f"{data}-{grouping}.json")
        ahead = [_ahead(mixing, found) for mixing, found in paired.items()]
        parts += [_HEAD + "".join(rows), _PAIRED + "".join(ahead)]
    return "\n" + "\n".join(parts) + "\n"


def _sizes(summary: Mapping[str, Any]) -> str:
    return ", ".join(f"{int(found['test']['users']):,}" for found in summary["groups"].values())


def of_mixing(runs: Mapping[Name, Mapping[str, Any]], mixing: str) -> list[Mapping[str, Any]]:
    """The runs of one mixing, a run a seed."""
    return [run for name, run in runs.items() if name.mixing == mixing]


def _row(mixing: str, runs: Iterable[Mapping[str, Any]]) -> str:
    """The means over the seeds."""
    runs = list(runs)
    over = [summed({name: found["test"] for name, found in run["groups"].items()})[_METRIC] for run in runs]
    values = [
        *(fmean(run[split][_METRIC] for run in runs) for split in ("validation", "test")),
        *(fmean(found[column] for found in over) for column in (MEAN, WORST, SPREAD)),
    ]
    moved = fmean(run["bytes_per_user"]["total"] for run in runs)
    return f"| {' | '.join([mixing, *(f'{value:.4f}' for value in values), f'{moved:,.0f}'])} |\n"


def _ahead(mixing: str, found: Mapping[str, Any]) -> str:
    cells = [f"{found[column]['difference']:+.4f} ± {found[column]['error']:.4f}" for column in _COLUMNS]
    return f"| {' | '.join([mixing, *cells])} |\n"


def _search(runs: Mapping[Name, Mapping[str, Any]]) -> str:
    """What was tried: by validation, one seed."""
    lines = []
    for name, run in runs.items():
        data = name.data.removeprefix("search-")
        if data != name.data:
            lines.append(_validated(f"{_DATA[data]} | {name.mixing.replace('_', ', ')}", run))
    return _VALIDATED.format("data | mixing, rate", "---|---") + "".join(lines) + "\n"


def _tried() -> str:
    """Rules of which there is no code any more: by validation, one seed, beside what they were made of."""
    found = [_read(path) for path in sorted((FOLDER / "tried").glob("*.json"))]
    return _VALIDATED.format("tried", "---") + "".join(_validated(run["name"], run["summary"]) for run in found) + "\n"


def _own_share() -> str:
    """What a share of its own model brings each group, if its own validation chooses the share."""
    lines = []
    for path in sorted(OWN_SHARE.glob("*.json")):
        (data, grouping, seed), found = path.stem.split("-"), _read(path)
        shares = ", ".join(f"{each['share']:g}" for each in found["groups"].values())
        worst = [f"{found[which]['worst']:.4f}" for which in ("pooled", "chosen")]
        ahead = [f"{each['difference']:+.4f} ± {each['error']:.4f}" for each in found["ahead"].values()]
        lines.append(f"| {' | '.join([f'{_DATA[data]}, `{grouping}`, {seed}', shares, *worst, *ahead])} |\n")
    return _OWN_SHARE_HEAD + "".join(lines) + "\n"


def _validated(what: str, run: Mapping[str, Any]) -> str:
    over = summed({group: found["validation"] for group, found in run["groups"].items()})[_METRIC]
    values = [run["validation"][_METRIC], *(over[column] for column in (MEAN, WORST, SPREAD))]
    return f"| {what} | {' | '.join(f'{value:.4f}' for value in values)} |\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out what the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.groups", description="Groups and their mixing.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the page has other tables")
    parser.add_argument("--keep", type=Path, metavar="RUNS", help="keep the finished runs in this folder")
    chosen = parser.parse_args(arguments)
    if chosen.keep:
        keep(chosen.keep)
    return documents.write(PAGE, tables(), command="python -m benchmarks.groups", check=chosen.check)


if __name__ == "__main__":
    sys.exit(main())
