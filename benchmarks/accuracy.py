"""Accuracy per byte: the kept runs of the recipe `fast` and the central ceiling, as a table and a picture.

    python -m benchmarks.accuracy             write the table into docs/accuracy.md, and draw docs/img/accuracy.png
    python -m benchmarks.accuracy --check     exit 1 if the page has another table

Runs are kept by `benchmarks/results_table.py --to accuracy --add NAME RUN`, baselines with `--to central`. Seeds of one
configuration have names that end with `seed <n>`; the table has their means. `--to search` keeps what
was tried on the way.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.results_table import RESULTS, ROOT
from commands.compare import Comparison, compare
from commands.curve_plot import draw

PAGE = ROOT / "docs" / "accuracy.md"
PICTURE = ROOT / "docs" / "img" / "accuracy.png"
_SHARES = ("90", "95")
_WAYS = {"up": "up", "down": "down", "one_time": "once", "merges": "merges", "total": "total"}


def comparison() -> Comparison:
    """The kept runs, by name, against the best central one."""
    central = sorted((RESULTS / "central").glob("*.json"))
    runs = sorted((RESULTS / "accuracy").glob("*.json"))
    best = max(central, key=lambda path: compare([str(path)], None).ceiling.value)
    return compare([*map(str, runs), *map(str, central)], str(best))


def table(found: Comparison) -> str:
    """One line a configuration: means (and spread) over its seeds, bytes, and what it took to come near the ceiling."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in found.as_dict()["runs"]:
        groups.setdefault(re.sub(r",? seed \d+$", "", run["run"]), []).append(run)
    columns = (
        "run",
        "seeds",
        "NDCG@10",
        "HR@10",
        "validation",
        "rounds",
        *_WAYS.values(),
        *(f"to {s} %" for s in _SHARES),
    )
    lines = [f"| {' | '.join(columns)} |", f"|---|{'---:|' * (len(columns) - 1)}"]
    for name, runs in groups.items():
        values = [_mean([run["test"][metric] for run in runs]) for metric in ("ndcg@10", "hr@10")]
        values.append(_mean([run["validation"] for run in runs]))
        moved = [_bytes(runs, way) for way in _WAYS]
        near = [_near(runs, share) for share in _SHARES]
        cells = [name, str(len(runs)), *values, f"{runs[0]['rounds']}", *moved, *near]
        lines.append(f"| {' | '.join(cells)} |")
    ceiling = f"Ceiling: validation NDCG@10 {found.ceiling.value:.4f}, {found.ceiling.source}."
    return "\n".join([*lines, "", ceiling])


def search() -> str:
    """One line a run of the search, whose name says what was changed: its validation, and nothing of its test."""
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in (RESULTS / "search").glob("*.json")]
    runs.sort(key=lambda run: -run["summary"]["validation"]["ndcg@10"])
    rows = [f"| {run['name']} | {run['summary']['validation']['ndcg@10']:.4f} |" for run in runs]
    return "\n".join(["| run | validation NDCG@10 |", "|---|---:|", *rows])


def _block(text: str, name: str, body: str) -> str:
    """The page with `body` between the two marks of a name."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    head, _, rest = text.partition(begin)
    return f"{head}{begin}\n\n{body}\n\n{end}{rest.partition(end)[2]}"


def _mean(values: Sequence[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{spread}"


def _bytes(runs: Sequence[dict[str, Any]], way: str) -> str:
    if any(run["bytes_per_user"] is None for run in runs):
        return "-"
    return f"{np.mean([run['bytes_per_user'][way] for run in runs]):,.0f}"


def _near(runs: Sequence[dict[str, Any]], share: str) -> str:
    """The mean of the bytes at which the seeds came there; how many of them did, if not all."""
    points = [run["to_reach"][share] for run in runs]
    there = [point["bytes"] for point in points if point is not None and point["bytes"] is not None]
    if not there:
        return "-"
    return f"{np.mean(there):,.0f}" + (f" ({len(there)} of {len(points)})" if len(there) < len(points) else "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out what the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description="Accuracy per byte.")
    parser.add_argument("--check", action="store_true")
    found, check = comparison(), parser.parse_args(arguments).check
    before = PAGE.read_text(encoding="utf-8")
    after = _block(_block(before, "accuracy", table(found)), "search", search())
    if check:
        if before != after:
            print("docs/accuracy.md has another table: run `python -m benchmarks.accuracy`", file=sys.stderr)
        return int(before != after)
    PAGE.write_text(after, encoding="utf-8")
    draw(found, PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
