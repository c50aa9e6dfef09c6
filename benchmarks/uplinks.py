"""What an uplink costs the training engine: client updates a second with each, beside whole tables in `int8`.

FedMF, d = 32, the whole table in `int8`, MovieLens 1M, the recipe `fast`. Each is timed in turn with `dense`, pair by
pair, so that the machine's drift does not count; seconds are those of the processor, with one thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.common import case, in_turn, ml_1m, options, rates, spread, synthetic, write
from benchmarks.rendering import interval, table
from benchmarks.task import LIMITS, load
from fedrec.config.describe import load_member
from fedrec.core import registry
from fedrec.core.registry import MemberConfig
from fedrec.stages.chain import Stages

_SEED = 7
_UPLINKS: dict[str, dict[str, Any]] = {
    "sparse": {},
    "sampled": {"rows": 64},
    "actions, 4": {"actions": 4},
    "actions, 16": {"actions": 16},
    "actions, 64": {"actions": 64},
}


def _stages(uplink: MemberConfig) -> Stages:
    codec = registry.codecs.get("int8")(load_member("codec", "int8"))
    return Stages([], codec, LIMITS, uplink=registry.uplinks.get(uplink.name)(uplink, codec))


def pairs(data: dict[str, Any], uplink: str, cohort: int, repeats: int) -> dict[str, Any]:
    """Client updates a second of a cohort's training with whole tables and with the uplink; the ratio of each pair."""
    torch.set_num_threads(1)
    task = load(data, "full", optim="fast")
    users = task.cohort(cohort)
    private = task.private(users)
    chosen = load_member("uplink", uplink.partition(",")[0], **_UPLINKS[uplink])
    engines = [task.engine(stages=_stages(load_member("uplink", "dense"))), task.engine(stages=_stages(chosen))]
    works = [partial(engine.train, task.model, users, private, _SEED) for engine in engines]
    seconds = in_turn(works, repeats)
    return {
        "uplink": uplink,
        "cohort": cohort,
        "dense": rates(cohort, seconds[0]),
        "with": rates(cohort, seconds[1]),
        "ratio": spread([before / after for before, after in zip(*seconds, strict=True)]),
    }


def rendered(result: dict[str, Any]) -> str:
    """The block of the document that shows a result."""
    rows = [
        [entry["uplink"], *(interval(entry[name]) for name in ("dense", "with", "ratio"))]
        for entry in result["figures"]["cases"]
    ]
    return table(["uplink", "updates/s with dense", "updates/s with it", "ratio of a pair"], rows)


BLOCKS = {"uplinks": rendered}
"""What the documents show of a result, by the name of the block."""


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    opts = options("uplinks", __doc__, arguments)
    data = ml_1m(opts.data, opts.cache) if opts.full else synthetic(opts.cache, 200, 300, 20.0)
    cohort, repeats = (604, 21) if opts.full else (16, 2)
    cases = [
        case("benchmarks.uplinks:pairs", data=data, uplink=name, cohort=cohort, repeats=repeats) for name in _UPLINKS
    ]
    configuration = {"data": "ml_1m" if opts.full else "synthetic", "backbone": "fedmf", "dim": 32, "cohort": cohort}
    return write(opts, "uplinks", configuration, {"cases": cases})


if __name__ == "__main__":
    main()
