"""Accuracy under differential privacy: the kept runs with a budget as a table, NDCG@10 against epsilon.

    python -m benchmarks.private_accuracy             write the tables into docs/privacy.md, and draw the picture
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
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import documents
from benchmarks.accuracy import SEED, kept, mean_of
from benchmarks.results_table import RESULTS, ROOT

PAGE = ROOT / "docs" / "privacy.md"
PICTURE = ROOT / "docs" / "img" / "privacy.png"
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


class Point(NamedTuple):
    """A configuration in the picture: its budget, mean test NDCG@10, how many seeds, and which series it is of."""

    epsilon: float
    value: float
    seeds: int
    series: str


_SERIES: Mapping[str, str] = {
    "co-occurrence": "co-occurrences, once",
    "popularity": "popularity alone, once",
    "text": "text and popularity, once",
    "distributed_gaussian": "trained, no trusted server",
    "local_gaussian": "trained, noise of each device",
    "central_gaussian": "trained, a trusted server",
}
"""Of the picture: the series of runs whose names begin so."""
_COLOURS = ("#ee6677", "#ccbb44", "#228833", "#aa3377", "#777777", "#4477aa")
UNTRAINED = RESULTS / "untrained" / "movielens-1m-co-occurrence.json"
"""Has the baselines that need nobody's data, on the same data and texts."""


def points() -> list[Point]:
    """Every kept configuration with a budget, by series and epsilon."""
    found = []
    for folder in ("privacy/accuracy", "privacy/statistics"):
        for name, summaries in kept(folder).items():
            series = next(title for start, title in _SERIES.items() if name.startswith(start))
            values = [float(summary["test"]["ndcg@10"]) for summary in summaries]
            found.append(Point(_epsilon(summaries), sum(values) / len(values), len(values), series))
    return sorted(found, key=lambda point: (point.series, point.epsilon))


def draw(path: Path) -> None:
    """Test NDCG@10 by epsilon, the best of each series at a budget joined by lines; beside it what costs no budget."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    figure = Figure(figsize=(8.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for colour, series in zip(_COLOURS, _SERIES.values(), strict=True):
        if not (mine := [point for point in points() if point.series == series]):
            continue
        axes.scatter([each.epsilon for each in mine], [each.value for each in mine], color=colour, s=18)
        best: dict[float, float] = {}
        for each in mine:
            budget = round(20 * each.epsilon) / 20  # 7.99 and 8.00 are one
            best[budget] = max(best.get(budget, 0.0), each.value)
        axes.plot(list(best), list(best.values()), color=colour, lw=1.5, label=series)
    floor = json.loads(UNTRAINED.read_text(encoding="utf-8"))["summary"]["baselines"]["content_last"]["ndcg@10"]
    axes.axhline(floor, color="#333333", lw=1, ls="--", label="text alone, epsilon 0")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator([0.25, 0.5, 1, 2, 4, 8]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(0)
    axes.set_xlabel("epsilon, at the level of a user, delta 1e-5")
    axes.set_ylabel("NDCG@10, test")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=130, metadata={"Software": None})


def _epsilon(summaries: Sequence[Mapping[str, Any]]) -> float:
    return max(float(summary["privacy"]["epsilon"]) for summary in summaries)


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out what the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.private_accuracy", description="NDCG against epsilon.")
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args(arguments).check
    if not check:
        draw(PICTURE)
    blocks = {"epsilon": f"\n{table()}\n\n", "statistics": f"\n{statistics()}\n\n"}
    return documents.write(PAGE, blocks, command="python -m benchmarks.private_accuracy", check=check)


if __name__ == "__main__":
    sys.exit(main())
