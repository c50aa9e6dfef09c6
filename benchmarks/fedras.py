"""Updates as actions and as drawn rows: the kept runs of `strategy=fedras` as a table.

    python -m benchmarks.fedras             write the table into docs/fedras.md
    python -m benchmarks.fedras --check     exit 1 if the page has another table

Runs are kept by `python -m benchmarks.results_table --to fedras --add NAME RUN`. Seeds of one configuration have names
that end with `seed <n>`; the table has their means. A name begins with its backbone. What every other run of a backbone
is measured by is that of plain `int8`, the same model whether all rows travel or those that changed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from benchmarks import documents
from benchmarks.results_table import RESULTS, ROOT

PAGE = ROOT / "docs" / "fedras.md"
_SEED = re.compile(r",? seed \d+$")
_PLAIN = ("int8, all rows", "int8, rows that changed")
_HEAD = (
    "| run | seeds | validation NDCG@10 | NDCG@10 | share of plain int8 | an update up, bytes | of a whole table | "
    "the model down, bytes | bytes per user |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|\n"
)


def _chosen(run: Mapping[str, Any]) -> float:
    """How often an average user was chosen: rounds times the share of users."""
    values = dict(text.partition("=")[::2] for text in run["overrides"])
    return float(run["summary"]["rounds"]) * float(values.get("federation.fraction", 0.1))


def table() -> str:
    """One line a configuration, and how it compares with the dense one of its backbone."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((RESULTS / "fedras").glob("*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        groups.setdefault(_SEED.sub("", run["name"]), []).append(run)

    def mean(runs: list[dict[str, Any]], split: str) -> float:
        return fmean(run["summary"][split]["ndcg@10"] for run in runs)

    def update(runs: list[dict[str, Any]], way: str) -> float:
        return fmean(run["summary"]["bytes_per_user"][way] / _chosen(run) for run in runs)

    lines = []
    for name, runs in sorted(groups.items(), key=lambda entry: (entry[0].partition(",")[0], -update(entry[1], "up"))):
        backbone = name.partition(",")[0]
        plain = next(found for each in _PLAIN if (found := groups.get(f"{backbone}, {each}")))
        tests = [run["summary"]["test"]["ndcg@10"] for run in runs]
        spread = f" ± {stdev(tests):.4f}" if len(tests) > 1 else ""
        up, down = update(runs, "up"), update(runs, "down")
        cells = [
            name,
            str(len(runs)),
            f"{mean(runs, 'validation'):.4f}",
            f"{fmean(tests):.4f}{spread}",
            f"{fmean(tests) / mean(plain, 'test'):.3f}",
            f"{up:,.0f}",
            f"1/{update(plain, 'down') / up:.1f}",
            f"{down:,.0f}",
            f"{fmean(run['summary']['bytes_per_user']['total'] for run in runs):,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |\n")
    return f"\n{_HEAD}{''.join(lines)}\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out what the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fedras", description="Updates as actions.")
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args(arguments).check
    return documents.write(PAGE, {"fedras": table()}, command="python -m benchmarks.fedras", check=check)


if __name__ == "__main__":
    sys.exit(main())
