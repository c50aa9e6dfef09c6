"""Stock Flower, one user per node: FedAvg, plain torch on each client, the whole item table in every message.

The same task as `benchmarks.engine` (FedMF, d = 32, BPR, two local epochs of Adam on MovieLens 1M), written as Flower's
own examples write it, on the same SuperLink and the same number of workers as `fedrec simulate`. Beside it, in the same
run of this benchmark, `fedrec` itself with as many users a round on as many nodes as there are workers.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import ml_1m, options, rates, spread, synthetic, write
from benchmarks.flower import rounds_of, run_app
from benchmarks.rendering import number, or_failure, table
from benchmarks.round_phases import federation

_APP = Path(__file__).resolve().parent / "stock_flower_app"


def stock(data: dict[str, Any], nodes: int, users: int, rounds: int, workers: int) -> dict[str, Any]:
    """`rounds` rounds of `users` users among `nodes` nodes of one user each; the first round starts Ray."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rounds.jsonl"
        values = {
            "num-server-rounds": rounds,
            "users-per-round": users,
            "items": int(data["items"]),
            "store": str(data["store"]),
            "eligible": str(data["eligible"]),
            "out": str(out),
        }
        found: dict[str, Any] = {"nodes": nodes, "users_per_round": users, "workers": workers}
        found |= run_app(_APP, values, nodes, workers, watched=out)
        if "failed" not in found:
            answers = rounds_of(out, lambda line: float(line["answers"]))
            seconds = rounds_of(out, lambda line: float(line["seconds"]))
            found["answers"] = spread(answers)
            found["seconds"] = spread(seconds[1:])
            found["updates_per_second"] = rates(float(np.mean(answers[1:])), seconds[1:])
            found["first_round_alone_seconds"] = seconds[0]
    return found


def rendered(result: dict[str, Any]) -> str:
    """The block of the document that shows a result."""
    figures = result["figures"]
    rows = [
        [
            "stock Flower",
            f"{entry['nodes']:,}",
            f"{entry['users_per_round']:,}",
            or_failure(entry, "updates_per_second"),
        ]
        for entry in figures["stock"]
    ]
    rows += [
        [
            "fedrec",
            f"{entry['nodes']:,}",
            f"{entry.get('users_per_round', 0):,}",
            or_failure(entry, "updates_per_second"),
        ]
        for entry in figures["fedrec"]
    ]
    ratios = ", ".join(f"{number(value)} at {int(n):,} nodes" for n, value in figures["fedrec_over_stock"].items())
    return table(["", "nodes", "users a round", "client updates/s"], rows) + f"\nfedrec over stock Flower: {ratios}.\n"


BLOCKS = {"stock-flower": rendered}
"""What the documents show of a result, by the name of the block."""


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    opts = options(
        "stock_flower", __doc__, arguments, lambda parser: parser.add_argument("--synthetic", action="store_true")
    )
    workers = max(1, os.cpu_count() or 1) if opts.full else 1
    data = synthetic(opts.cache, 2_000, 1_000, 30.0) if opts.extra.synthetic else ml_1m(opts.data, opts.cache)
    sizes = ((200, 200), (1_000, 600), (6_040, 604)) if opts.full else ((6, 6),)
    rounds = 6 if opts.full else 2
    cases = [stock(data, nodes, users, rounds, workers) for nodes, users in sizes]
    ours = [federation(opts, users, rounds + 6, workers) for users in sorted({users for _, users in sizes})]
    best = {entry["users_per_round"]: entry for entry in ours if "updates_per_second" in entry}
    ratios = {
        str(entry["nodes"]): best[entry["users_per_round"]]["updates_per_second"]["median"]
        / entry["updates_per_second"]["median"]
        for entry in cases
        if "updates_per_second" in entry and entry["users_per_round"] in best
    }
    configuration = {
        "data": "synthetic" if opts.extra.synthetic else "ml_1m",
        "dim": 32,
        "local_steps": 2,
        "optimiser": "adam",
        "payload": "the whole item table, float32, both directions",
    }
    return write(opts, "stock_flower", configuration, {"stock": cases, "fedrec": ours, "fedrec_over_stock": ratios})


if __name__ == "__main__":
    main()
