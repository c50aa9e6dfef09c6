"""Accuracy under differential privacy: the kept runs with a budget as a table, NDCG@10 against epsilon.

    python -m benchmarks.private_accuracy             write the table into docs/privacy.md
    python -m benchmarks.private_accuracy --check     exit 1 if the page has another table

Runs are kept by `python -m benchmarks.results_table --to privacy/accuracy --add NAME RUN`; seeds of one configuration
have names that end with `seed <n>`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import documents
from benchmarks.accuracy import kept, mean_of
from benchmarks.results_table import ROOT

PAGE = ROOT / "docs" / "privacy.md"
_COLUMNS = (
    "run",
    "epsilon",
    "seeds",
    "validation NDCG@10",
    "NDCG@10",
    "HR@10",
    "rounds",
    "share of the users",
    "bytes per user",
)


def table() -> str:
    """One line a configuration, the smallest epsilon first."""
    runs = sorted(kept("privacy/accuracy").items(), key=lambda each: (_epsilon(each[1]), each[0]))
    lines = [f"| {' | '.join(_COLUMNS)} |", f"|---|{'---:|' * (len(_COLUMNS) - 1)}"]
    for name, summaries in runs:
        account = summaries[0]["privacy"]
        ranked = (("validation", "ndcg@10"), ("test", "ndcg@10"), ("test", "hr@10"))
        moved = sum(summary["bytes_per_user"]["total"] for summary in summaries) / len(summaries)
        cells = [name, f"{_epsilon(summaries):.2f}", str(len(summaries))]
        cells += [mean_of(summaries, split, metric) for split, metric in ranked]
        cells += [str(account["releases"]), f"{account['sampling']:g}"]
        lines.append(f"| {' | '.join([*cells, f'{moved:,.0f}'])} |")
    return "\n".join(lines)


def _epsilon(summaries: Sequence[Mapping[str, Any]]) -> float:
    return max(float(summary["privacy"]["epsilon"]) for summary in summaries)


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out what the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.private_accuracy", description="NDCG against epsilon.")
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args(arguments).check
    blocks = {"epsilon": f"\n{table()}\n\n"}
    return documents.write(PAGE, blocks, command="python -m benchmarks.private_accuracy", check=check)


if __name__ == "__main__":
    sys.exit(main())
