"""The training engine alone: client updates a second and peak memory, against the oracle and against `vmap`.

FedMF, d = 32, BPR, two local steps of Adam on everything, MovieLens 1M read through `dataset=table`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks import vmapped
from benchmarks.common import case, ml_1m, options, rates, spread, synthetic, timed, write
from benchmarks.phases import ENGINE, clocked
from benchmarks.rendering import gib, interval, ratio_line, table
from benchmarks.task import Task, load

EMBEDDINGS = ("full", "lora")
_SEED = 7


def updates(
    data: dict[str, Any],
    embedding: str,
    engine: str,
    cohort: int,
    repeats: int,
    threads: int,
    pairs_at_once: int | None = None,
) -> dict[str, Any]:
    """Client updates a second of one engine on one cohort."""
    torch.set_num_threads(threads)
    task = load(data, embedding)
    users = task.cohort(cohort)
    private = task.private(users)
    if engine == "vmap":
        seconds = timed(lambda: vmapped.train(task, users, private, _SEED, pairs_at_once or 20_000), repeats)
    else:
        made = task.engine(engine, pairs_at_once)
        seconds = timed(lambda: made.train(task.model, users, private, _SEED), repeats, int(engine != "oracle"))
    return {
        "embedding": embedding,
        "engine": engine,
        "cohort": cohort,
        "threads": threads,
        "pairs": len(users.items),
        "pairs_at_once": pairs_at_once,
        "seconds": spread(seconds),
        "updates_per_second": rates(cohort, seconds),
    }


def parts(data: dict[str, Any], embedding: str, cohort: int, repeats: int, threads: int) -> dict[str, Any]:
    """Where the cohort engine's time goes: the share of each part of its work."""
    torch.set_num_threads(threads)
    task = load(data, embedding)
    users = task.cohort(cohort)
    private = task.private(users)
    engine = task.engine()
    engine.train(task.model, users, private, _SEED)
    with clocked(ENGINE) as clock:
        seconds = timed(lambda: engine.train(task.model, users, private, _SEED), repeats, 0)
    total = sum(seconds)
    shares = {part: spent / total for part, spent in clock.seconds.items()}
    shares["other"] = 1.0 - sum(shares.values())
    return {
        "embedding": embedding,
        "cohort": cohort,
        "threads": threads,
        "seconds": spread(seconds),
        "share": shares,
        "not_found": clock.not_found,
    }


def same_numbers(data: dict[str, Any], embedding: str, cohort: int) -> dict[str, Any]:
    """How far `vmap` and the oracle are from the cohort engine, in float64, as the largest difference of any number."""
    task = load(data, embedding, dtype=torch.float64)
    users = _short(task, cohort)
    private = task.private(users)
    trained = task.engine().train(task.model, users, private, _SEED)
    oracle = task.engine("oracle").train(task.model, users, private, _SEED)
    total, after = vmapped.train(task, users, private, _SEED, 2_000)

    def gap(ours: Any, theirs: Any) -> float:
        return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)

    return {
        "embedding": embedding,
        "cohort": cohort,
        "vmap": max(gap(trained.update.total, total), gap(trained.private, after)),
        "oracle": max(gap(trained.update.total, oracle.update.total), gap(trained.private, oracle.private)),
    }


def _short(task: Task, cohort: int) -> Any:
    """Users of any length, in an order that is not that of their length."""
    users = task.cohort(4 * cohort)
    return users.select(np.sort(np.random.default_rng(1).permutation(len(users))[:cohort]))


def rendered(result: dict[str, Any]) -> str:
    """The block of the document that shows a result."""
    figures = result["figures"]
    rows = [
        [
            entry["engine"],
            entry["embedding"],
            f"{entry['cohort']:,}",
            entry["threads"],
            "default" if entry.get("pairs_at_once") is None else f"{entry['pairs_at_once']:,}",
            entry.get("failed") or interval(entry.get("updates_per_second")),
            gib(entry),
        ]
        for entry in figures["cases"]
    ]
    head = ["engine", "embedding", "cohort", "threads", "pairs at once", "client updates/s", "peak memory"]
    ratios = [f"- {name}: {ratio_line(values)}" for name, values in figures["ratios"].items()]
    same = [
        f"- {entry['embedding']}: vmap {entry['vmap']:.1e}, oracle {entry['oracle']:.1e}"
        for entry in figures["same_numbers"]
        if "vmap" in entry
    ]
    return (
        table(head, rows)
        + "\nRatios of medians, one thread, in the same run:\n\n"
        + "\n".join(ratios)
        + "\n\nLargest difference of any number from the cohort engine, in float64:\n\n"
        + "\n".join(same)
        + "\n"
    )


def rendered_parts(result: dict[str, Any]) -> str:
    """The block of the document that shows a result."""
    entries = [entry for entry in result["figures"]["parts"] if "share" in entry]
    parts = sorted({part for entry in entries for part in entry["share"]}, key=lambda p: -entries[0]["share"].get(p, 0))
    rows = [
        [e["embedding"], e["threads"], *(f"{100 * e['share'].get(part, 0.0):.0f} %" for part in parts)] for e in entries
    ]
    return table(["embedding", "threads", *parts], rows)


BLOCKS = {"engine": rendered, "engine-parts": rendered_parts}
"""What the documents show of a result, by the name of the block."""


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    opts = options("engine", __doc__, arguments, lambda parser: parser.add_argument("--synthetic", action="store_true"))
    full = opts.full
    data = synthetic(opts.cache, 2_000, 1_000, 30.0) if opts.extra.synthetic else ml_1m(opts.data, opts.cache)
    base = 604 if full else 64
    repeats = 9 if full else 2
    embeddings = EMBEDDINGS
    cases: list[dict[str, Any]] = []

    def measure(**values: Any) -> None:
        cases.append({**values, **case("benchmarks.engine:updates", data=data, **values)})

    for embedding in embeddings:
        for threads in (1, 2) if full else (1,):
            measure(embedding=embedding, engine="cohort", cohort=base, repeats=repeats, threads=threads)
        measure(embedding=embedding, engine="vmap", cohort=base, repeats=repeats, threads=1)
        measure(embedding=embedding, engine="oracle", cohort=base, repeats=3 if full else 1, threads=1)
        for cohort in (100, 1_000, 3_000, 6_040, 10_000) if full else (16,):
            measure(embedding=embedding, engine="cohort", cohort=cohort, repeats=5 if full else 2, threads=1)
        for pairs in (2_000, 8_000, 32_000, 128_000) if full else ():
            measure(embedding=embedding, engine="cohort", cohort=base, repeats=5, threads=1, pairs_at_once=pairs)
        for pairs in (4_000, 64_000) if full else ():
            measure(embedding=embedding, engine="vmap", cohort=base, repeats=3, threads=1, pairs_at_once=pairs)
    profile = [
        {**case("benchmarks.engine:parts", data=data, embedding=name, cohort=base, repeats=repeats, threads=threads)}
        for name in embeddings
        for threads in ((1, 2) if full else (1,))
    ]
    checks = [
        case("benchmarks.engine:same_numbers", data=data, embedding=name, cohort=40 if full else 6)
        for name in embeddings
    ]
    configuration = {
        "data": "synthetic" if opts.extra.synthetic else "ml_1m",
        "backbone": "fedmf",
        "dim": 32,
        "local_steps": 2,
        "optimiser": "adam",
        "negatives": 1,
        "cohort": base,
    }
    figures = {"cases": cases, "parts": profile, "same_numbers": checks, "ratios": _ratios(cases, base)}
    return write(opts, "engine", configuration, figures)


def _ratios(cases: list[dict[str, Any]], base: int) -> dict[str, Any]:
    """The cohort engine's speed over the others', medians, one thread each, the same cohort."""
    found: dict[str, Any] = {}
    for embedding in EMBEDDINGS:
        speeds: dict[str, float] = {}
        for entry in cases:
            same = entry["embedding"] == embedding and entry["cohort"] == base and entry["threads"] == 1
            if same and entry.get("pairs_at_once") is None and "updates_per_second" in entry:
                speeds.setdefault(entry["engine"], entry["updates_per_second"]["median"])
        found[embedding] = {
            f"cohort_over_{other}": speeds["cohort"] / speeds[other]
            for other in ("oracle", "vmap")
            if {"cohort", other} <= speeds.keys()
        }
    return found


if __name__ == "__main__":
    main()
