"""Full ranking: every user's held-out item against the whole catalogue, seconds and peak memory.

All users of MovieLens 1M with every backbone, and users of a synthetic catalogue of up to a million items. Scores are
in the backbone's own type, seen items are excluded, ties take their expected rank, as in any run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import case, ml_1m, options, rates, spread, synthetic, timed, write
from benchmarks.rendering import gib, interval, or_failure, table
from benchmarks.task import load
from client_app.answers.evaluation import RankingProtocol, rank_users
from client_app.homes.users import Cohort
from fedrec.config.describe import complete_members
from fedrec.core.rng import counter_bits
from fedrec.data import split
from fedrec.data.store import open_store


def rank(
    data: dict[str, Any], embedding: str, users: int, repeats: int, threads: int, backbone: str = "fedmf"
) -> dict[str, Any]:
    """Rank the validation items of the first `users` users who have one."""
    torch.set_num_threads(threads)
    task = load(data, embedding, backbone)
    interactions = open_store(Path(data["store"]))
    chosen = np.flatnonzero(split.evaluated(interactions, of="validation"))[:users]
    histories = split.histories(interactions, "validation", chosen)
    positives = split.targets(interactions, "validation", chosen).astype(np.int64)
    cohort = Cohort(counter_bits(0, chosen), histories.offsets, histories.items.astype(np.int64))
    private = task.private(cohort)
    protocol = RankingProtocol((5, 10, 20), task.sampler, 0, 0)
    seconds = timed(lambda: rank_users(task.model, cohort, positives, private, protocol), repeats, int(repeats > 1))
    scores = len(cohort) * len(task.eligible)
    return {
        "embedding": embedding,
        "backbone": backbone,
        "users": len(cohort),
        "items": len(task.eligible),
        "threads": threads,
        "seconds": spread(seconds),
        "users_per_second": rates(len(cohort), seconds),
        "scores_per_second": rates(scores, seconds),
        "product_alone": _product_alone(len(task.eligible), threads),
    }


def _product_alone(items: int, threads: int) -> dict[str, Any]:
    """Scores a second of nothing but the matrix product in float64, written to memory: what ranking cannot beat."""
    torch.set_num_threads(threads)
    block = min(items, 16_384)
    users, table = torch.randn(200, 32, dtype=torch.float64), torch.randn(block, 32, dtype=torch.float64)
    return rates(200 * block, timed(lambda: users @ table.T, 5))


def rendered(result: dict[str, Any]) -> str:
    """The block of the document that shows a result."""
    figures = result["figures"]
    rows = [
        [
            e.get("embedding", "-"),
            e.get("backbone", "-"),
            f"{e.get('users', 0):,}",
            f"{e.get('items', 0):,}",
            e.get("threads", "-"),
            or_failure(e, "seconds"),
            interval(e.get("scores_per_second")),
            interval(e.get("product_alone")),
            gib(e),
        ]
        for e in [*figures["all_users"], *figures["catalogues"]]
    ]
    head = [
        "embedding",
        "backbone",
        "users",
        "items",
        "threads",
        "seconds",
        "scores/s",
        "product alone, scores/s",
        "peak memory",
    ]
    return table(head, rows)


BLOCKS = {"evaluation": rendered}
"""What the documents show of a result, by the name of the block."""


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    opts = options(
        "evaluation", __doc__, arguments, lambda parser: parser.add_argument("--synthetic", action="store_true")
    )
    full = opts.full
    movies = synthetic(opts.cache, 2_000, 1_000, 30.0) if opts.extra.synthetic else ml_1m(opts.data, opts.cache)
    everybody, times = (6_040, 5) if full else (50, 2)
    common = {"data": movies, "users": everybody, "repeats": times}
    cases = [
        case("benchmarks.evaluation:rank", threads=threads, embedding=name, **common)
        for name in ("full", "lora")
        for threads in ((1, 2) if full else (1,))
    ]
    cases += [
        case("benchmarks.evaluation:rank", threads=1, embedding="lora", backbone=name, **common)
        for name in complete_members("backbone")
        if name != "fedmf"
    ]
    sizes = ((10_000, 1_000), (100_000, 1_000), (1_000_000, 1_000)) if full else ((300, 20),)
    catalogues = []
    for items, users in sizes:
        data = synthetic(opts.cache, 10_000 if full else 200, items, 20.0 if full else 8.0)
        catalogues.append(
            case("benchmarks.evaluation:rank", threads=1, data=data, embedding="lora", users=users, repeats=3)
        )
    configuration = {"dim": 32, "candidates": "all eligible items"}
    return write(opts, "evaluation", configuration, {"all_users": cases, "catalogues": catalogues})


if __name__ == "__main__":
    main()
