"""Accuracy under differential privacy: the kept runs with a budget as a table, NDCG@10 against epsilon.

    python -m benchmarks.private_accuracy             write the table into docs/privacy.md
    python -m benchmarks.private_accuracy --check     exit 1 if the page has another table

Runs are kept by `python -m benchmarks.results_table --to privacy/accuracy --add NAME RUN`; seeds of one configuration
have names that end with `seed <n>`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import documents
from benchmarks.accuracy import SEED, kept, mean_of
from benchmarks.results_table import RESULTS, ROOT

PAGE = ROOT / "docs" / "privacy.md"
_ITEMS = 3_706
"""Of MovieLens 1M: popularity is a number for each."""
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


_COUNTED = ("statistic", "epsilon", "seeds", "validation NDCG@10", "NDCG@10", "HR@10", "numbers in the sums")


def statistics() -> str:
    """One line a kept statistic, those without a budget last."""
    counted = {}
    for path in sorted((RESULTS / "privacy" / "statistics").glob("*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        given = dict(text.split("=", 1) for text in run["overrides"])
        counted[SEED.sub("", run["name"])] = int(given.get("statistics.items", 0))
    runs = kept("privacy/statistics")
    lines = [f"| {' | '.join(_COUNTED)} |", f"|---|{'---:|' * (len(_COUNTED) - 1)}"]
    for name in sorted(runs, key=lambda name: (_budget(runs[name]), name)):
        items, budget = counted[name], _budget(runs[name])
        ranked = (("validation", "ndcg@10"), ("test", "ndcg@10"), ("test", "hr@10"))
        cells = [name, "none" if budget == math.inf else f"{budget:.2f}", str(len(runs[name]))]
        cells += [mean_of(runs[name], split, metric) for split, metric in ranked]
        lines.append(f"| {' | '.join([*cells, f'{_ITEMS + items * (items - 1) // 2:,}'])} |")
    return "\n".join(lines)


def _budget(summaries: Sequence[Mapping[str, Any]]) -> float:
    return _epsilon(summaries) if "privacy" in summaries[0] else math.inf


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
    blocks = {"epsilon": f"\n{table()}\n\n", "statistics": f"\n{statistics()}\n\n"}
    return documents.write(PAGE, blocks, command="python -m benchmarks.private_accuracy", check=check)


if __name__ == "__main__":
    sys.exit(main())
