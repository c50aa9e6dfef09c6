"""Accuracy per byte: the kept runs of the recipe `fast` and the central ceiling, as a table and a picture.

    python -m benchmarks.accuracy             write the table into docs/accuracy.md, and draw docs/img/accuracy.png
    python -m benchmarks.accuracy --check     exit 1 if the page has another table

Runs are kept by `python -m benchmarks.results_table --to FOLDER --add NAME RUN`: in `accuracy`, with their curves;
`central`, what they are measured by; `last`, runs without validation; `amazon`, `backbones`, `sequences`, `equal` and
`catalogue`; `ablation`, one ingredient changed at a time, each with the name of the change; `search`, what was tried on
the way. Seeds of one configuration have names that end with `seed <n>`; the tables have their means.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import documents
from benchmarks.results_table import RESULTS, ROOT, rounds_of
from commands.compare import Comparison, compare
from commands.curve_plot import draw
from commands.progress import amount

PAGE = ROOT / "docs" / "accuracy.md"
PICTURE = ROOT / "docs" / "img" / "accuracy.png"
ABLATION = ROOT / "docs" / "img" / "accuracy-ablation.png"
LEADING = ROOT / "docs" / "img" / "leading.png"
_CURVES = {
    "self-attention,\nrows that changed": "sequences/movielens-1m-sasrec-sequences-2mb-validated-every-131-rounds.json",
    "factorisation,\nP-LoRA": "accuracy/p-lora-int8-contexts-1mb-seed-0.json",
    "factorisation,\nwhole table, int8": "accuracy/full-int8-of-100-rounds-1-000-negatives-falling-rate.json",
    "factorisation,\nwhole table, float32": "accuracy/full-float32.json",
}
"""The curves of the README's picture, by what stands beside their ends."""
_CENTRAL = "sequences/movielens-1m-central-sasrec.json"
_PLAIN = ("last", "amazon", "sequences", "equal", "catalogue")
"""Folders whose runs make a table without a curve."""
_NOT_DRAWN = ("without warm-up", "300 negatives", "50 rounds")
"""Parts of the names of runs that are in the table alone: more curves than eight tell nobody anything."""
SEED = re.compile(r",? seed \d+$")
"""The end of the name of one of several seeds of a configuration."""
_SHARES = ("90", "95")
_WAYS = {"up": "up", "down": "down", "one_time": "one-time", "merges": "merges", "total": "total"}


def comparison() -> Comparison:
    """The kept runs, by name, against the best central one."""
    central = sorted((RESULTS / "central").glob("*.json"))
    runs = sorted((RESULTS / "accuracy").glob("*.json"))
    best = max(central, key=lambda path: compare([str(path)], None).ceiling.value)
    return compare([*map(str, runs), *map(str, central)], str(best))


def drawn(found: Comparison) -> Comparison:
    """What the picture shows: of several seeds the first, of central training the ceiling, and not every variant."""
    plain = [run for run in found.runs if not any(text in run.name for text in _NOT_DRAWN)]
    first = [run for run in plain if not SEED.search(run.name) or run.name.endswith("seed 0")]
    return replace(found, runs=[run for run in first if run.bytes is not None or run.name == found.ceiling.source])


def table(found: Comparison) -> str:
    """One line a configuration: means (and spread) over its seeds, bytes, and what it took to come near the ceiling."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in found.as_dict()["runs"]:
        groups.setdefault(SEED.sub("", run["run"]), []).append(run)
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


def kept(folder: str) -> dict[str, list[dict[str, Any]]]:
    """The summaries of the runs in a folder of the results, by the name that their seeds share."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((RESULTS / folder).glob("*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        groups.setdefault(SEED.sub("", run["name"]), []).append(run["summary"])
    return groups


def plain(folder: str) -> str:
    """One line a configuration, in the order of their names: validation, test, bytes. A dash for what it has not."""
    lines = [
        "| run | seeds | validation NDCG@10 | NDCG@10 | HR@10 | sampled NDCG@10 | rounds | bytes per user |",
        f"|---|{'---:|' * 7}",
    ]
    for name, runs in kept(folder).items():
        values = [
            mean_of(runs, split, metric)
            for split, metric in (
                ("validation", "ndcg@10"),
                ("test", "ndcg@10"),
                ("test", "hr@10"),
                ("test", "sampled100/ndcg@10"),
            )
        ]
        moved = [run["bytes_per_user"]["total"] for run in runs if "bytes_per_user" in run]
        cells = [name, str(len(runs)), *values, rounds_of(runs[0]), f"{np.mean(moved):,.0f}" if moved else "-"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def backbones() -> str:
    """Each method beside Full, of the same data, backbone, recipe, rounds and codec; and beside Full's best round."""
    lines = [
        "| data and backbone | method | rounds | NDCG@10 | of Full's | validation | of Full's | of its best | bytes "
        "per user | of Full's |",
        f"|---|---|{'---:|' * 8}",
    ]
    found = [json.loads(path.read_text(encoding="utf-8")) for path in (RESULTS / "backbones").glob("*.json")]
    runs = {run["name"]: run for run in found}
    for name, run in sorted(runs.items()):
        place, _, method = name.rpartition(" ")
        full, summary = runs[f"{place} Full"], run["summary"]
        test, validation = (summary[split]["ndcg@10"] for split in ("test", "validation"))
        fulls_test, fulls_validation = (full["summary"][split]["ndcg@10"] for split in ("test", "validation"))
        best = max(point["validation"]["ndcg@10"] for point in full["curve"])
        moved, fulls = (each["bytes_per_user"]["total"] for each in (summary, full["summary"]))
        cells = [place, method, str(summary["rounds"]), f"{test:.4f}", f"{test / fulls_test:.0%}"]
        cells += [f"{validation:.4f}", f"{validation / fulls_validation:.0%}", f"{validation / best:.0%}"]
        cells += [f"{moved:,.0f}", f"1 / {fulls / moved:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def mean_of(runs: Sequence[dict[str, Any]], split: str, metric: str) -> str:
    """The mean of a metric over summaries, with its spread where there are several; a dash if one has it not."""
    values = [run[split][metric] for run in runs if metric in run.get(split, {})]
    return _mean(values) if len(values) == len(runs) else "-"


def ablation() -> list[tuple[str, float, float]]:
    """Name, validation NDCG@10 and bytes per user of every run that changes one thing, best first."""
    groups = kept("ablation").items()
    found = [
        (
            name,
            float(np.mean([run["validation"]["ndcg@10"] for run in runs])),
            float(np.mean([run["bytes_per_user"]["total"] for run in runs])),
        )
        for name, runs in groups
    ]
    return sorted(found, key=lambda line: -line[1])


def ablation_table() -> str:
    """The ablation in words."""
    rows = [f"| {name} | {value:.4f} | {moved:,.0f} |" for name, value, moved in ablation()]
    return "\n".join(["| run | validation NDCG@10 | bytes per user |", "|---|---:|---:|", *rows])


def draw_ablation(path: Path) -> None:
    """Bars, best first, each with its bytes."""
    from matplotlib.figure import Figure

    lines = ablation()[::-1]
    figure = Figure(figsize=(8.5, 0.8 + 0.38 * len(lines)), layout="constrained")
    axes = figure.subplots()
    values = [value for _, value, _ in lines]
    axes.barh(range(len(lines)), values, color=["#ee6677" if name == "as chosen" else "#4477aa" for name, *_ in lines])
    axes.set_yticks(range(len(lines)), [name for name, *_ in lines])
    for place, (_, value, moved) in enumerate(lines):
        axes.text(value, place, f" {value:.4f}, {amount(moved)}", va="center", fontsize=9)
    axes.set_xlim(0, 1.3 * max(values))
    axes.set_xlabel("NDCG@10 at validation, and bytes per user")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130, metadata={"Software": None})


def draw_leading(path: Path) -> None:
    """Validation by bytes of a user: few curves, each named beside its last point, and the best central training."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=(8.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for colour, (name, file) in zip(("#4477aa", "#ee6677", "#228833", "#999999"), _CURVES.items(), strict=True):
        points = _load(file)["curve"]
        places = [point["bytes_per_user"]["total"] for point in points]
        values = [point["validation"]["ndcg@10"] for point in points]
        axes.plot(places, values, color=colour, marker="o", ms=3, lw=2)
        axes.annotate(
            name,
            (places[-1], values[-1]),
            xytext=(6, 3),
            textcoords="offset points",
            color=colour,
            va="top",
            fontsize=9,
        )
    best = _load(_CENTRAL)["summary"]["validation"]["ndcg@10"]
    axes.axhline(best, color="#333333", ls="--", lw=1)
    axes.annotate(
        f"self-attention with all data in one place {best:.3f}",
        (0.99, best),
        xycoords=("axes fraction", "data"),
        xytext=(0, 4),
        textcoords="offset points",
        ha="right",
        fontsize=9,
        color="#333333",
    )
    axes.set_xscale("log")
    axes.set_xlim(right=7e7)
    axes.set_ylim(0, 1.12 * best)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: amount(count).replace(".0 ", " ")))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("bytes that a user has moved, up, down and one-time (log)")
    axes.set_ylabel("NDCG@10, MovieLens 1M, validation")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130, metadata={"Software": None})


def _load(file: str) -> dict[str, Any]:
    """A kept run."""
    run: dict[str, Any] = json.loads((RESULTS / file).read_text(encoding="utf-8"))
    return run


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
    bodies = {"accuracy": table(found), "ablation": ablation_table(), "backbones": backbones(), "search": search()}
    bodies |= {name: plain(name) for name in _PLAIN}
    blocks = {name: f"\n{body}\n\n" for name, body in bodies.items()}
    status = documents.write(PAGE, blocks, command="python -m benchmarks.accuracy", check=check)
    if check:
        return status
    draw(drawn(found), PICTURE)
    draw_ablation(ABLATION)
    draw_leading(LEADING)
    return 0


if __name__ == "__main__":
    sys.exit(main())
