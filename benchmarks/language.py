"""Language models: the kept runs of `backbone=language_model` as a table.

    python -m benchmarks.language             write the table into docs/fellrec.md
    python -m benchmarks.language --check     exit 1 if the page has another table

Runs are kept by `python -m benchmarks.results_table --to language --add NAME RUN`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from benchmarks import documents
from benchmarks.results_table import RESULTS, ROOT

PAGE = ROOT / "docs" / "fellrec.md"
_HEAD = (
    "| run | validation NDCG@10 | test NDCG@10 | test HR@10 | worst group | best untrained baseline | ahead of it | "
    "bytes per user up | down | once |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n"
)


def table() -> str:
    """One line a run."""
    lines = []
    for path in sorted((RESULTS / "language").glob("*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        summary = run["summary"]
        groups = [ranked["test"]["ndcg@10"] for ranked in summary.get("groups", {}).values()]
        best = max(means["ndcg@10"] for means in summary["baselines"].values())
        moved, lead = summary["bytes_per_user"], summary["lead"]
        cells = [
            run["name"],
            f"{summary['validation']['ndcg@10']:.4f}",
            f"{summary['test']['ndcg@10']:.4f}",
            f"{summary['test']['hr@10']:.4f}",
            f"{min(groups):.4f}" if groups else "-",
            f"{best:.4f}",
            f"{lead['difference']:+.4f} ± {lead['standard_error']:.4f}",
            *(f"{moved[way]:,.0f}" for way in ("up", "down", "one_time")),
        ]
        lines.append(f"| {' | '.join(cells)} |\n")
    return f"\n{_HEAD}{''.join(lines)}\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out what the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.language", description="Runs with language models.")
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args(arguments).check
    return documents.write(PAGE, {"language": table()}, command="python -m benchmarks.language", check=check)


if __name__ == "__main__":
    sys.exit(main())
