"""What a clip of every update costs the training engines, and noise on the sum beside it.

FedMF, d = 32, two local steps of Adam on everything, the whole table; catalogues of three sizes. Clip and no clip are
timed in turn, pair by pair, so that the machine's drift does not count; the noise of a sum of that size is timed apart.
Seconds are those of the processor, with one thread: what else the machine does does not count either.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.common import case, in_turn, options, spread, synthetic, write
from benchmarks.rendering import interval, table
from benchmarks.task import LIMITS, load
from fedrec.codecs.float32 import Float32Codec, Float32Config
from fedrec.core.registry import MemberConfig
from fedrec.core.tensors import spec_of
from fedrec.privacy.base import PrivacyMechanism
from fedrec.stages.chain import Stages
from fedrec.stages.contributions import Contributions
from fedrec.stages.draws import Draws
from fedrec.stages.sums import Sum

_CLIP = 0.1
_SEED = 7


class Clip(PrivacyMechanism):
    """Every update is clipped, and all weigh the same."""

    reads = "norms"

    def on_devices(self, given: Contributions, draws: Draws) -> Contributions:
        """As in `Stage`."""
        return given.clipped(_CLIP).weighing(torch.ones_like(given.weight))


def pairs(data: dict[str, Any], engine: str, cohort: int, repeats: int) -> dict[str, Any]:
    """Seconds of a cohort's training without and with a clip, in turn, and the ratio of each pair."""
    torch.set_num_threads(1)
    task = load(data)
    users = task.cohort(cohort)
    private = task.private(users)
    clip = Stages([Clip(MemberConfig("clip"))], Float32Codec(Float32Config("float32")), LIMITS)
    plain, clipped = task.engine(engine), task.engine(engine, stages=clip)
    works: list[Callable[[], Any]] = [
        lambda: plain.train(task.model, users, private, _SEED),
        lambda: clipped.train(task.model, users, private, _SEED),
    ]
    seconds = in_turn(works, repeats)
    ratios = [after / before for before, after in zip(*seconds, strict=True)]
    return {
        "items": data["items"],
        "engine": engine,
        "cohort": cohort,
        "without": spread(seconds[0]),
        "with": spread(seconds[1]),
        "ratio": spread(ratios),
    }


def noise(data: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Seconds to draw and add the noise of one sum."""
    torch.set_num_threads(1)
    trainable = load(data).model.trainable
    units = {name: torch.zeros_like(tensor, dtype=torch.int64) for name, tensor in trainable.items()}
    total = Sum(spec_of(trainable), units, 2.0**20, 1.0)
    seconds = []
    for number in range(repeats):
        started = time.process_time()
        total.with_noise(_CLIP, Draws(number, fresh=False))
        seconds.append(time.process_time() - started)
    numbers = sum(tensor.numel() for tensor in trainable.values())
    return {"items": data["items"], "numbers": numbers, "seconds": spread(seconds)}


def rendered(result: dict[str, Any]) -> str:
    """The block of the document that shows a result."""
    figures = result["figures"]
    drawn = {entry["items"]: entry["seconds"] for entry in figures["noise"]}
    rows = [
        [
            f"{entry['items']:,}",
            entry["engine"],
            entry["cohort"],
            interval(entry["without"]),
            interval(entry["with"]),
            interval(entry["ratio"]),
            interval(drawn[entry["items"]]),
        ]
        for entry in figures["cases"]
    ]
    head = [
        "items",
        "engine",
        "cohort",
        "seconds without",
        "seconds with",
        "ratio of a pair",
        "noise on the sum, seconds",
    ]
    return table(head, rows)


BLOCKS = {"clipping": rendered}
"""What the documents show of a result, by the name of the block."""


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    opts = options("clipping", __doc__, arguments)
    sizes = (3_706, 50_000, 500_000) if opts.full else (300, 1_000)
    users, repeats = (2_000, 15) if opts.full else (60, 2)
    cohorts = {"cohort": (100, repeats), "oracle": (2, min(repeats, 7))}
    timed, noises = [], []
    for items in sizes:
        data = synthetic(opts.cache, users, items, 60.0)
        for engine, (cohort, times) in cohorts.items():
            values = {"data": data, "engine": engine, "cohort": cohort if opts.full else 2, "repeats": times}
            timed.append(case("benchmarks.clipping:pairs", **values))
        noises.append(case("benchmarks.clipping:noise", data=data, repeats=min(repeats, 5)))
    configuration = {"backbone": "fedmf", "embedding": "full", "dim": 32, "clip": _CLIP, "interactions_per_user": 60}
    return write(opts, "clipping", configuration, {"cases": timed, "noise": noises})


if __name__ == "__main__":
    main()
