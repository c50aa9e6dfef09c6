"""A round of few users with a backbone that reads the order: where its time goes, and what a whole run takes.

The recipe is that of `experiment=sequences_1mb` (sasrec, whole table down in int8, lists of rows up). Rounds of 30 and
of 60 users on the in-process grid, by parts; rounds of 60 users through Flower's simulation beside its rounds of empty
messages; and the whole run by `fedrec train`, from the command to its summary.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import Options, case, ml_1m, options, synthetic, table_overrides, write
from benchmarks.federation import simulation
from benchmarks.rendering import interval, number, table
from benchmarks.round_phases import empty
from server_app.run_folder import SUMMARY

_RECIPE = ["experiment=sequences_1mb"]
_SMALL_USERS = 300


def whole_run(overrides: Sequence[str]) -> dict[str, Any]:
    """`fedrec train` in a process of its own: wall and processor seconds, and what its summary says of the run."""
    with tempfile.TemporaryDirectory() as folder:
        given = [*overrides, f"runs_dir={folder}", "run_id=benchmark"]
        command = [sys.executable, "-c", "from commands.cli import main; main()", "train", *given]
        used, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, check=False)
        seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            return {"failed": done.stderr.strip()[-500:]}
        summary = json.loads((Path(folder) / "benchmark" / SUMMARY).read_text(encoding="utf-8"))
    processor = after.ru_utime - used.ru_utime + after.ru_stime - used.ru_stime
    return {"seconds": seconds, "processor_seconds": processor, "rounds": summary["rounds"]}


def rendered(result: dict[str, Any]) -> str:
    """The block of the document that shows a result."""
    figures = result["figures"]
    rows = []
    for entry in figures["in_process"]:
        parts, whole = entry["part_seconds"], entry["round_seconds_timed"]
        train, rest = parts["train"], whole - parts["train"]
        cells = [entry["users_per_round"], interval(entry["seconds"]), f"{train / whole:.0%}", f"{rest / whole:.0%}"]
        rows.append([*cells, ", ".join(f"{name} {1e3 * spent:.1f}" for name, spent in _largest(parts))])
    head = ["users a round", "seconds a round", "training", "all else", "parts of it, ms"]
    through, floor, run = figures["simulation"], figures["floor"]["push_and_pull"], figures["run"]
    return table(head, rows) + (
        f"\nThrough Flower's simulation a round of {through['users_per_round']} users takes "
        f"{interval(through['seconds'])} s, one of empty messages {interval(floor)} s: "
        f"{number(through['seconds']['median'] / floor['median'])} times as long. The whole run by `fedrec train`, "
        f"{run['rounds']:,} rounds of {figures['in_process'][0]['users_per_round']} users with its validations and the "
        f"last ranking: {run['seconds']:.0f} s, of which {run['processor_seconds']:.0f} s on a processor.\n"
    )


def _largest(parts: dict[str, float]) -> list[tuple[str, float]]:
    others = [(name, spent) for name, spent in parts.items() if name != "train"]
    return sorted(others, key=lambda part: -part[1])[:4]


BLOCKS = {"sequences": rendered}
"""What the documents show of a result, by the name of the block."""


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    opts = options(
        "sequences", __doc__, arguments, lambda parser: parser.add_argument("--synthetic", action="store_true")
    )
    rounds = 200 if opts.full else 2
    cohorts = (30, 60) if opts.full else (6, 12)
    data = synthetic(opts.cache, _SMALL_USERS, 200, 12.0) if opts.extra.synthetic else ml_1m(opts.data, opts.cache)
    inside = [
        case(
            "benchmarks.federation:in_process",
            threads=1,
            data=data,
            embedding="full",
            recipe=_RECIPE,
            users_per_round=users,
            rounds=rounds,
            nodes=1,
            phases=True,
        )
        for users in cohorts
    ]
    dataset, everybody = _dataset(opts)
    shared = [*_RECIPE, *dataset, "evaluation.baselines=false"]
    share = f"federation.fraction={cohorts[-1] / everybody!r}"
    figures: dict[str, Any] = {
        "in_process": inside,
        "floor": empty(1, 1, 50 if opts.full else 3),
        "simulation": simulation([*shared, share, "evaluation.every=0"], opts.cache, 60 if opts.full else 4, 1, 1),
        "run": whole_run(_whole(opts, shared)),
    }
    configuration = {
        "data": "synthetic" if opts.extra.synthetic else "ml_1m",
        "experiment": "sequences_1mb",
        "nodes": 1,
    }
    return write(opts, "sequences", configuration, figures)


def _dataset(opts: Options) -> tuple[list[str], int]:
    if opts.extra.synthetic:
        return ["dataset=synthetic", f"dataset.n_users={_SMALL_USERS}", "dataset.n_items=200"], _SMALL_USERS
    return table_overrides(opts.data), 6_040


def _whole(opts: Options, shared: Sequence[str]) -> list[str]:
    shorter = [] if opts.full else ["strategy.rounds=3"]
    return [*shared, *shorter, "simulation.nodes=1", f"cache_dir={opts.cache}"]


if __name__ == "__main__":
    main()
