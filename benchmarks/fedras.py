"""Updates as actions and as drawn rows: the kept runs of `strategy=fedras` as tables and a picture.

    python -m benchmarks.fedras             write the tables into docs/fedras.md, and draw docs/img/fedras-time.png
    python -m benchmarks.fedras --check     exit 1 if the page has other tables

Runs are kept by `python -m benchmarks.results_table --to fedras --add NAME RUN`. Seeds of one configuration have names
that end with `seed <n>`; the table has their means. A name begins with its backbone. What every other run of a backbone
is measured by is that of plain `int8`, the same model whether all rows travel or those that changed.

Those of other data are in folders of their own (`fedras-amazon`, `fedras-catalogue`), as are those that only tell time:
`fedras-time`, and `fedras-adaptive` with devices that send very slowly. What ranks without training is in
`fedras-baselines`.

Runs whose devices are simulated and that were validated on the way have times, too. Latency is a part of every user's
round, so that another one is the same run with as much more, or less, for each round.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks import documents
from benchmarks.results_table import RESULTS, ROOT

PAGE = ROOT / "docs" / "fedras.md"
PICTURE = ROOT / "docs" / "img" / "fedras-time.png"
_SEED = re.compile(r",? seed \d+$")
_PLAIN = ("int8, all rows", "int8, rows that changed")
_HEAD = (
    "| run | seeds | validation NDCG@10 | NDCG@10 | share of plain int8 | an update up, bytes | of a whole table | "
    "down in all, bytes a round | bytes per user | of dense int8 both ways |\n"
    "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n"
)
_TIMED = "fedmf, int8, all rows, seed 0"
"""The run by which times are measured."""
_PART, _LATENCY, _LATENCIES = 0.95, 0.1, (0.1, 1.0, 10.0)


def _chosen(run: Mapping[str, Any]) -> float:
    """How often an average user was chosen: rounds times the share of users."""
    values = dict(text.partition("=")[::2] for text in run["overrides"])
    return float(run["summary"]["rounds"]) * float(values.get("federation.fraction", 0.1))


def kept(folder: str = "fedras") -> dict[str, dict[str, Any]]:
    """The kept runs of a folder by name."""
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((RESULTS / folder).glob("*.json"))]
    return {run["name"]: run for run in runs}


def _update(runs: Sequence[Mapping[str, Any]], way: str) -> float:
    """Bytes of the tables and all else that a user moves one way when it is chosen once."""
    return fmean(run["summary"]["bytes_per_user"][way] / _chosen(run) for run in runs)


def table(folder: str) -> str:
    """One line a configuration, and how it compares with the dense one of its backbone."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for name, run in kept(folder).items():
        groups.setdefault(_SEED.sub("", name), []).append(run)

    def mean(runs: list[dict[str, Any]], split: str) -> float:
        return fmean(run["summary"][split]["ndcg@10"] for run in runs)

    lines = []
    for name, runs in sorted(groups.items(), key=lambda entry: (entry[0].partition(",")[0], -_update(entry[1], "up"))):
        backbone = name.partition(",")[0]
        plain = next(found for each in _PLAIN if (found := groups.get(f"{backbone}, {each}")))
        tests = [run["summary"]["test"]["ndcg@10"] for run in runs]
        spread = f" ± {stdev(tests):.4f}" if len(tests) > 1 else ""
        up, dense = _update(runs, "up"), _update(plain, "down")
        moved = fmean(run["summary"]["bytes_per_user"]["total"] for run in runs)
        both = 2 * dense * fmean(map(_chosen, runs))
        cells = [
            name,
            str(len(runs)),
            f"{mean(runs, 'validation'):.4f}",
            f"{fmean(tests):.4f}{spread}",
            f"{fmean(tests) / mean(plain, 'test'):.3f}",
            f"{up:,.0f}",
            f"1/{dense / up:.1f}",
            f"{moved / fmean(map(_chosen, runs)) - up:,.0f}",
            f"{moved:,.0f}",
            f"{moved / both:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |\n")
    return f"\n{_HEAD}{''.join(lines)}\n"


def _popularity() -> str:
    """What the most popular items come to on the data of the large catalogue."""
    (run,) = kept("fedras-baselines").values()
    return f"The most popular items, for everybody: {run['summary']['test']['ndcg@10']:.4f}.\n\n"


def timed() -> dict[str, dict[str, Any]]:
    """The runs that have times, the one by which they are measured first, also those that went only as far as that."""
    everything = kept() | kept("fedras-time")
    runs = {name: run for name, run in everything.items() if "simulated_seconds" in run.get("curve", [{}])[0]}
    return {name: runs[name] for name in sorted(runs, key=lambda name: (name != _TIMED, name))}


def _seconds(point: Mapping[str, Any], latency: float) -> float:
    """Simulated seconds until a point of a curve, as if the latency had been another."""
    return float(point["simulated_seconds"]) + (latency - _LATENCY) * float(point["round"])


def times() -> str:
    """When each run first came to a part of what the dense one has at its end, by the latency of a round."""
    runs = timed()
    target = _PART * runs[_TIMED]["curve"][-1]["validation"]["ndcg@10"]
    head = " | ".join(f"latency {latency:g} s | of dense" for latency in _LATENCIES)
    lines = [f"| run | round | {head} |", f"|---|{'---:|' * (1 + 2 * len(_LATENCIES))}"]
    reached = {
        name: next((point for point in run["curve"] if point["validation"]["ndcg@10"] >= target), None)
        for name, run in runs.items()
    }
    dense = reached[_TIMED]
    assert dense is not None, "a curve comes to a part of its end"
    for name, point in reached.items():
        if point is None:
            lines.append(f"| {name} | not reached |{' |' * 2 * len(_LATENCIES)}")
            continue
        cells = [
            f"{_seconds(point, latency):,.0f} s | {_seconds(point, latency) / _seconds(dense, latency):.2f}"
            for latency in _LATENCIES
        ]
        lines.append(f"| {name} | {point['round']} | {' | '.join(cells)} |")
    return "\n" + "\n".join(lines) + "\n\n"


def adaptive() -> str:
    """Numbers of actions that follow from the device beside fixed ones, by simulated time and by what is learned."""
    goal = kept()[_TIMED]["curve"][-1]["validation"]["ndcg@10"]
    lines = [
        "| run | an update up, bytes | seconds a round | NDCG@10 at validation, last | until 90 %, s | until 95 %, s |",
        "|---|---:|---:|---:|---:|---:|",
    ]

    def until(curve: Sequence[Mapping[str, Any]], part: float) -> str:
        found = next((point for point in curve if point["validation"]["ndcg@10"] >= part * goal), None)
        return f"{found['simulated_seconds']:,.0f} (round {found['round']})" if found else "not reached"

    for name, run in kept("fedras-adaptive").items():
        curve = run["curve"]
        cells = [
            name,
            f"{_update([run], 'up'):,.0f}",
            f"{curve[-1]['simulated_seconds'] / curve[-1]['round']:.2f}",
            f"{curve[-1]['validation']['ndcg@10']:.4f}",
            *(until(curve, part) for part in (0.9, _PART)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n" + "\n".join(lines) + "\n\n"


def draw(path: Path) -> None:
    """NDCG@10 at validation over simulated time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axes = figure.subplots()
    for name, run in timed().items():
        points = run["curve"]
        seconds = [_seconds(point, _LATENCY) for point in points]
        axes.plot(seconds, [point["validation"]["ndcg@10"] for point in points], ".-", label=_SEED.sub("", name))
    axes.set(xscale="log", xlabel="simulated seconds (mobile, latency 0.1 s)", ylabel="NDCG@10 at validation")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130, metadata={"Software": None})


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out what the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fedras", description="Updates as actions.")
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args(arguments).check
    blocks = {
        "fedras": table("fedras"),
        "amazon": table("fedras-amazon"),
        "catalogue": table("fedras-catalogue") + _popularity(),
        "time": times(),
        "adaptive": adaptive(),
    }
    status = documents.write(PAGE, blocks, command="python -m benchmarks.fedras", check=check)
    if not check:
        draw(PICTURE)
    return status


if __name__ == "__main__":
    sys.exit(main())
