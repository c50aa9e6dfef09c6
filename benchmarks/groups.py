"""Groups with models of their own: the kept runs of `strategy=fellrec` as a table.

    python -m benchmarks.groups             write the table into docs/fellrec.md
    python -m benchmarks.groups --check     exit 1 if the page has another table

Runs are kept by `python -m benchmarks.results_table --to groups --add NAME RUN`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from statistics import fmean, pstdev

from benchmarks import documents
from benchmarks.results_table import RESULTS, ROOT

PAGE = ROOT / "docs" / "fellrec.md"
_HEAD = (
    "| run | validation, all users | test, all users | mean of the groups | worst group | standard deviation | "
    "bytes per user |\n|---|---:|---:|---:|---:|---:|---:|\n"
)


def table() -> str:
    """One line a run: NDCG@10 over all users, and at test over the groups, whatever their size."""
    lines = []
    for path in sorted((RESULTS / "groups").glob("*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        summary = run["summary"]
        each = [ranked["test"]["ndcg@10"] for ranked in summary["groups"].values()]
        values = [summary["validation"]["ndcg@10"], summary["test"]["ndcg@10"], fmean(each), min(each), pstdev(each)]
        cells = [run["name"], *(f"{value:.4f}" for value in values), f"{summary['bytes_per_user']['total']:,.0f}"]
        lines.append(f"| {' | '.join(cells)} |\n")
    return f"\n{_HEAD}{''.join(lines)}\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out what the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.groups", description="Groups and their mixing.")
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args(arguments).check
    return documents.write(PAGE, {"groups": table()}, command="python -m benchmarks.groups", check=check)


if __name__ == "__main__":
    sys.exit(main())
