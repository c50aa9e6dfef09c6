"""One user per SuperNode through Flower's simulation: seconds a round, and how many of them are Flower's own.

Rounds of a tenth of the users through the runtime of `fedrec simulate`, a node for each user; beside them, in the same
run of this benchmark, rounds of as many empty messages among as many nodes, and of one to every node (what enrolment
and an evaluation need).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from benchmarks.common import options, write
from benchmarks.federation import simulation
from benchmarks.rendering import interval, measured_with, or_failure, table
from benchmarks.round_phases import empty

_INVERTED = {"min": "max", "median": "median", "max": "min"}


def point(nodes: int, rounds: int, workers: int, cache: Any) -> dict[str, Any]:
    """One number of nodes: fedrec's rounds, and Flower's with nothing in the messages."""
    chosen = max(1, nodes // 10)
    some = empty(nodes, workers, rounds, messages=chosen, ways="push_and_pull")
    everybody = empty(nodes, workers, 2, ways="push_and_pull")
    overrides = [
        f"dataset.n_users={nodes}",
        "dataset.n_items=1000",
        "strategy.warmup_rounds=0",
        "evaluation.every=0",
        "evaluation.baselines=false",
        "optim.solve_epochs=1",
    ]
    ours = simulation(overrides, cache, rounds, nodes, workers)
    found: dict[str, Any] = {"nodes": nodes, "users_per_round": chosen, "workers": workers, "fedrec": ours}
    for name, case, calls in (("empty_cohort", some, chosen), ("empty_everybody", everybody, nodes)):
        found[name] = case
        if "push_and_pull" in case:
            seconds = case["push_and_pull"]
            rates = {most: calls / seconds[least] for least, most in _INVERTED.items()}
            case["calls_per_second"] = {**rates, "repeats": seconds["repeats"]}
    if "seconds" in ours and "push_and_pull" in some:
        found["flowers_share"] = some["push_and_pull"]["median"] / ours["seconds"]["median"]
    return found


def rendered(result: dict[str, Any]) -> str:
    """Seconds of a round with one user per node, and of as many empty messages."""
    rows = [
        [
            f"{entry['nodes']:,}",
            f"{entry['users_per_round']:,}",
            or_failure(entry["fedrec"], "seconds"),
            or_failure(entry["empty_cohort"], "push_and_pull"),
            interval(entry["empty_cohort"].get("calls_per_second")),
            or_failure(entry["empty_everybody"], "push_and_pull"),
        ]
        for entry in result["figures"]["sizes"]
    ]
    head = ["nodes", "messages a round", "a round, s", "empty messages, s", "empty calls/s", "one to every node, s"]
    return table(head, rows) + measured_with(result)


BLOCKS = {"many-nodes": rendered}
"""What the documents show of a result, by the name of the block."""


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    opts = options(
        "one_user_per_node", __doc__, arguments, lambda parser: parser.add_argument("--synthetic", action="store_true")
    )
    workers = max(1, os.cpu_count() or 1) if opts.full else 1
    sizes = (200, 1_000, 6_040) if opts.full else (40,)
    figures = {"sizes": [point(nodes, 8 if opts.full else 3, workers, opts.cache) for nodes in sizes]}
    configuration = {
        "data": "synthetic, a thousand items",
        "embedding": "lora of rank 4 (P-LoRA)",
        "users_a_round": 0.1,
    }
    return write(opts, "one_user_per_node", configuration, figures)


if __name__ == "__main__":
    main()
