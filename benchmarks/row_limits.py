"""What the limit of each row costs the training engine: client updates a second with it and without.

FedMF, d = 32, MovieLens 1M, the recipes `paper` and `fast`. With and without are timed in turn, pair by pair,
so that the machine's drift does not count; seconds are those of the processor, with one thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.common import case, in_turn, ml_1m, options, rates, spread, synthetic, write
from benchmarks.rendering import interval, table
from benchmarks.task import DIM, LIMITS, load
from fedrec.codecs.float32 import Float32Codec, Float32Config
from fedrec.config.schema import ROW_OF_GRADIENTS
from fedrec.stages.chain import Stages
from fedrec.stages.rows import RowLimits

_SEED = 7


def pairs(data: dict[str, Any], embedding: str, optim: str, cohort: int, repeats: int) -> dict[str, Any]:
    """Client updates a second of a cohort's training without and with the limit, and the ratio of each pair."""
    torch.set_num_threads(1)
    task = load(data, embedding, optim=optim)
    users = task.cohort(cohort)
    private = task.private(users)
    reach = LIMITS.weight_cap * task.recipe.row_reach(DIM)  # as a deployment has it
    rows = RowLimits(lambda width: ROW_OF_GRADIENTS if optim == "fast" else reach, LIMITS.weight_cap)
    limited = Stages([], Float32Codec(Float32Config("float32")), LIMITS, rows)
    engines = [task.engine(), task.engine(stages=limited)]
    works = [partial(engine.train, task.model, users, private, _SEED) for engine in engines]
    seconds = in_turn(works, repeats)
    return {
        "embedding": embedding,
        "optim": optim,
        "cohort": cohort,
        "without": rates(cohort, seconds[0]),
        "with": rates(cohort, seconds[1]),
        "ratio": spread([before / after for before, after in zip(*seconds, strict=True)]),
    }


def rendered(result: dict[str, Any]) -> str:
    """The block of the document that shows a result."""
    rows = [
        [entry["optim"], entry["embedding"], *(interval(entry[name]) for name in ("without", "with", "ratio"))]
        for entry in result["figures"]["cases"]
    ]
    return table(["recipe", "embedding", "updates/s without", "updates/s with", "ratio of a pair"], rows)


BLOCKS = {"row-limits": rendered}
"""What the documents show of a result, by the name of the block."""


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    opts = options("row_limits", __doc__, arguments)
    data = ml_1m(opts.data, opts.cache) if opts.full else synthetic(opts.cache, 200, 300, 20.0)
    cohort, repeats = (604, 7) if opts.full else (16, 2)
    cases = [
        case("benchmarks.row_limits:pairs", data=data, embedding=name, optim=optim, cohort=cohort, repeats=repeats)
        for optim in ("paper", "fast")
        for name in ("full", "lora", "hash")
    ]
    configuration = {"data": "ml_1m" if opts.full else "synthetic", "backbone": "fedmf", "dim": 32, "cohort": cohort}
    return write(opts, "row_limits", configuration, {"cases": cases})


if __name__ == "__main__":
    main()
