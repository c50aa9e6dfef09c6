"""How a round's cost and memory grow: with users, items, history length, and the size of the cohort.

Synthetic data, the real server and clients on the in-process grid, no evaluation. Every point is a process of its own.
The cost must follow the users who train, not the users who exist: the last cases draw the same number of users from a
million and from ten thousand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.common import case, options, synthetic, write
from benchmarks.rendering import gib, number, or_failure, table


def rendered(result: dict[str, Any]) -> str:
    """The block of the document that shows a result."""
    figures = result["figures"]
    text = ""
    for axis in ("users", "items", "history", "cohort"):
        rows = [[f"{e[axis]:,}", or_failure(e, "seconds"), gib(e)] for e in figures[axis]]
        if rows:
            text += table([axis, "seconds a round", "peak memory"], rows) + "\n"
    rows = []
    for name in ("few", "many"):
        for embedding, e in figures["target"][name].items():
            shape = f"{e['users']:,} x {e['items']:,}, {e['cohort']:,} a round"
            rows.append([shape, embedding, or_failure(e, "seconds"), gib(e)])
    ratios = ", ".join(f"{number(value)} ({name})" for name, value in figures["target"]["ratio"].items())
    head = ["users x items", "embedding", "seconds a round", "peak memory"]
    return text + table(head, rows) + f"\nThe same cohort from many users over from few: {ratios}.\n"


BLOCKS = {"scaling": rendered}
"""What the documents show of a result, by the name of the block."""


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    opts = options("scaling", __doc__, arguments)
    full = opts.full
    base = {"users": 10_000, "items": 10_000, "history": 20.0, "cohort": 1_000, "embedding": "lora"}
    if not full:
        base |= {"users": 200, "items": 300, "history": 8.0, "cohort": 50}
    axes: dict[str, Sequence[Any]] = {
        "users": (1_000, 10_000, 100_000, 1_000_000) if full else (200, 400),
        "items": (1_000, 10_000, 100_000, 1_000_000) if full else (),
        "history": (5.0, 20.0, 80.0, 320.0) if full else (),
        "cohort": (100, 300, 1_000, 3_000, 10_000) if full else (),
    }
    rounds = 7 if full else 2
    figures: dict[str, Any] = {
        axis: [_point({**base, axis: value}, opts.cache, rounds) for value in values] for axis, values in axes.items()
    }
    items, cohort = (100_000, 10_000) if full else (300, 50)
    history = 20.0 if full else 8.0
    target: dict[str, Any] = {}
    for name, users in {"many": 1_000_000 if full else 2_000, "few": cohort}.items():
        values = {"users": users, "items": items, "history": history, "cohort": cohort}
        target[name] = {
            embedding: _point({**values, "embedding": embedding}, opts.cache, 5 if full else 2)
            for embedding in ("lora", "full")
        }
    target["ratio"] = {
        embedding: target["many"][embedding]["seconds"]["median"] / target["few"][embedding]["seconds"]["median"]
        for embedding in ("lora", "full")
        if all("seconds" in target[name][embedding] for name in ("many", "few"))
    }
    figures["target"] = target
    return write(opts, "scaling", {"base": base, "nodes": 2, "threads": 1}, figures)


def _point(values: dict[str, Any], cache: Any, rounds: int) -> dict[str, Any]:
    data = synthetic(cache, values["users"], values["items"], values["history"])
    measured = case(
        "benchmarks.federation:in_process",
        threads=1,
        data=data,
        embedding=values["embedding"],
        users_per_round=min(values["cohort"], values["users"]),
        rounds=rounds,
        nodes=2,
    )
    return {**values, **measured}


if __name__ == "__main__":
    main()
