"""One figure per story, from the result files: `python -m benchmarks.plot` writes docs/img/*.png.

Needs matplotlib (the `benchmarks` extra). A result file that is not there leaves its figure out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.common import RESULTS, ROOT

IMAGES = ROOT / "docs" / "img"
_COLOURS = {"full": "#4477aa", "lora": "#ee6677"}
_PARTS = ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677", "#aa3377", "#777777", "#bbbbbb", "#332288", "#dd7733")
_LEAST = 0.02  # share of the longest bar below which a part is drawn with the others
_GREY = "#777777"


def _bars(axes: Axes, labels: Sequence[str], spreads: Sequence[dict[str, float]], colours: Sequence[str]) -> None:
    """Horizontal bars of medians on a logarithmic axis, with the least and the most as a line."""
    medians = [value["median"] for value in spreads]
    around = [[v["median"] - v["min"] for v in spreads], [v["max"] - v["median"] for v in spreads]]
    axes.barh(range(len(labels)), medians, xerr=around, color=colours, error_kw={"lw": 1, "ecolor": "#333333"})
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(min(medians) / 3, max(medians) * 4)
    for row, value in enumerate(spreads):
        axes.text(value["max"] * 1.12, row, f"{value['median']:,.0f}", va="center", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def engines(results: dict[str, Any]) -> Figure | None:
    """Client updates a second of everything that was measured on the same task."""
    rows: list[tuple[str, dict[str, float], str]] = []
    if "engine" in results:
        size = results["engine"]["configuration"]["cohort"]
        for entry in results["engine"]["figures"]["cases"]:
            plain = entry["cohort"] == size and entry.get("pairs_at_once") is None and entry.get("threads") == 1
            if plain and "updates_per_second" in entry:
                names = {"cohort": "cohort engine", "vmap": "torch.func.vmap", "oracle": "one at a time (oracle)"}
                label = f"{names[entry['engine']]}, {entry['embedding']}"
                rows.append((label, entry["updates_per_second"], _COLOURS[entry["embedding"]]))
    for entry in results.get("round_phases", {}).get("figures", {}).get("simulation", []):
        if "updates_per_second" in entry:
            label = f"fedrec through Flower, {entry['users_per_round']:,} users a round, lora"
            rows.append((label, entry["updates_per_second"], _COLOURS["lora"]))
    for entry in results.get("pfl_task", {}).get("figures", {}).get("pfl", []):
        if "updates_per_second" in entry and entry["threads"] == 1:
            rows.append(("pfl-research (SGD), full", entry["updates_per_second"], _GREY))
    for entry in results.get("pfl_task", {}).get("figures", {}).get("fedrec", []):
        if "updates_per_second" in entry and entry["threads"] == 1:
            rows.append(("cohort engine (SGD), full", entry["updates_per_second"], _COLOURS["full"]))
    for entry in results.get("stock_flower", {}).get("figures", {}).get("stock", []):
        if "updates_per_second" in entry:
            rows.append((f"stock Flower, {entry['nodes']:,} nodes, full", entry["updates_per_second"], _GREY))
    if not rows:
        return None
    rows.sort(key=lambda row: -row[1]["median"])
    figure, axes = plt.subplots(figsize=(8, 0.8 + 0.32 * len(rows)))
    _bars(axes, [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows])
    axes.set_xlabel("client updates per second (median; line: least to most)")
    return figure


def engine_parts(results: dict[str, Any]) -> Figure | None:
    """Where the engine's time goes."""
    entries = [e for e in results.get("engine", {}).get("figures", {}).get("parts", []) if "share" in e]
    if not entries:
        return None
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.4 * len(entries)))
    labels = [f"{e['embedding']}, {e['threads']} thread{'s' if e['threads'] > 1 else ''}" for e in entries]
    _stack(axes, labels, [e["share"] for e in entries], 100.0)
    axes.set_xlabel("share of the engine's time (%)")
    return figure


def _stack(axes: Axes, labels: Sequence[str], entries: Sequence[dict[str, float]], scale: float) -> None:
    parts = sorted(
        {part for entry in entries for part in entry}, key=lambda part: -sum(e.get(part, 0) for e in entries)
    )
    longest = max(sum(entry.values()) for entry in entries)
    small = [p for p in parts if p != "other" and all(e.get(p, 0.0) < _LEAST * longest for e in entries)]
    if len(small) > 1:
        rest = [{**e, "other": e.get("other", 0.0) + sum(e.get(p, 0.0) for p in small)} for e in entries]
        entries, parts = rest, [part for part in parts if part not in (*small, "other")] + ["other"]
    left = [0.0] * len(entries)
    for number, part in enumerate(parts):
        widths = [scale * max(0.0, entry.get(part, 0.0)) for entry in entries]
        axes.barh(range(len(entries)), widths, left=left, label=part, color=_PARTS[number % len(_PARTS)])
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(entries)), labels)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(ncols=5, fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 1))


def round_parts(results: dict[str, Any]) -> Figure | None:
    """Where a round's time goes, in one process and through Flower."""
    figures = results.get("round_phases", {}).get("figures")
    if not figures:
        return None
    labels, entries = [], []
    for entry in figures["in_process"]:
        if "part_seconds" in entry:
            spent = dict(entry["part_seconds"])
            spent["other"] = max(0.0, entry["round_seconds_timed"] - sum(spent.values()))
            labels.append(f"in one process, {entry['embedding']}")
            entries.append(spent)
    through = figures["simulation_parts"]
    if "part_seconds" in through and "seconds" in through:
        servers = [v for k, v in through["part_seconds"].items() if k.startswith("server")]
        clients = [v for k, v in through["part_seconds"].items() if k.startswith("client")]
        slowest = max(clients, key=lambda parts: sum(parts.values()), default={})
        spent = dict(slowest)
        for server in servers:
            for part, value in server.items():
                spent[part] = spent.get(part, 0.0) + value
        spent["runtime"] = max(0.0, through["seconds"]["median"] - sum(spent.values()))
        labels.append("through Flower, lora")
        entries.append(spent)
    if not entries:
        return None
    figure, axes = plt.subplots(figsize=(8, 1.4 + 0.45 * len(entries)))
    _stack(axes, labels, entries, 1000.0)
    floor = figures["floor"].get("push_and_pull")
    if floor:
        axes.axvline(1000 * floor["median"], color="#333333", ls="--", lw=1)
        axes.text(1000 * floor["median"], -0.5, " an empty round", fontsize=8, va="top")
    axes.set_xlabel("milliseconds a round (server and its slowest worker)")
    return figure


def scaling(results: dict[str, Any]) -> Figure | None:
    """Seconds a round against users, items, history and cohort."""
    figures = results.get("scaling", {}).get("figures")
    if not figures:
        return None
    axes_of = [axis for axis in ("users", "items", "history", "cohort") if figures.get(axis)]
    figure, grid = plt.subplots(2, len(axes_of), figsize=(2.4 * len(axes_of) + 0.6, 4.4), squeeze=False, sharex="col")
    titles = {"users": "users in the data", "items": "items", "history": "items a user", "cohort": "users a round"}
    for column, axis in enumerate(axes_of):
        found = [entry for entry in figures[axis] if "seconds" in entry]
        x = [entry[axis] for entry in found]
        time_axes, memory_axes = grid[0][column], grid[1][column]
        time_axes.plot(x, [e["seconds"]["median"] for e in found], "o-", color=_COLOURS["lora"])
        low, high = [e["seconds"]["min"] for e in found], [e["seconds"]["max"] for e in found]
        time_axes.fill_between(x, low, high, color=_COLOURS["lora"], alpha=0.25, lw=0)
        memory_axes.plot(x, [e["peak_bytes"] / 2**30 for e in found], "s-", color=_COLOURS["full"])
        time_axes.set(xscale="log", yscale="log")
        memory_axes.set(xscale="log", xlabel=titles[axis], ylim=(0, None))
        for each in (time_axes, memory_axes):
            each.grid(alpha=0.3)
            each.spines[["top", "right"]].set_visible(False)
    grid[0][0].set_ylabel("seconds a round")
    grid[1][0].set_ylabel("peak memory (GiB)")
    for row in grid:
        top = max(axes.get_ylim()[1] for axes in row)
        low = min(axes.get_ylim()[0] for axes in row)
        for axes in row:
            axes.set_ylim(low, 1.1 * top)
    return figure


FIGURES: dict[str, Callable[[dict[str, Any]], Figure | None]] = {
    "speed-engines": engines,
    "speed-engine-parts": engine_parts,
    "speed-round-parts": round_parts,
    "speed-scaling": scaling,
}


def main(arguments: Sequence[str] | None = None) -> list[Path]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--images", type=Path, default=IMAGES)
    parsed = parser.parse_args(arguments)
    results = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in parsed.results.glob("*.json")}
    parsed.images.mkdir(parents=True, exist_ok=True)
    written = []
    for name, draw in FIGURES.items():
        figure = draw(results)
        if figure is not None:
            path = parsed.images / f"{name}.png"
            figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": None})
            plt.close(figure)
            written.append(path)
    return written


if __name__ == "__main__":
    for image in main():
        print(image)
