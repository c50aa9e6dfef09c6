"""pfl-research on the same task: FedMF, BPR, two local epochs of SGD, 604 users a round of MovieLens 1M.

`pfl` pins packages that other parts of fedrec need newer, so give it an environment of its own, with torch and numpy:

    python -m venv pfl-env && pfl-env/bin/pip install pfl torch numpy
    python -m benchmarks.pfl_task --python pfl-env/bin/python

The worker (`pfl_worker.py`) runs there; the cohort engine runs the same users, with SGD too, beside it. With pfl every
user trains the dense table and its private vector is lost between rounds, which is how pfl sees a user: without state.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from typing_extensions import override

from benchmarks.common import case, ml_1m, options, rates, spread, synthetic, timed, write
from benchmarks.rendering import or_failure, table
from benchmarks.task import LIMITS, load
from client_app.training.cohort import CohortEngine
from fedrec.optim.base import LocalStep, Sgd
from fedrec.optim.paper import PaperRecipe
from fedrec.stages.chain import plain_stages

_LR = 0.1


@dataclass
class _SgdRecipe(PaperRecipe):
    """The paper's recipe with plain gradient descent."""

    def __init__(self, recipe: PaperRecipe) -> None:
        super().__init__(recipe.config, recipe.advice)

    @override
    def local_steps(self) -> Sequence[LocalStep]:
        return [LocalStep(private=True, shared=True, optimiser=Sgd(_LR))] * self.config.local_epochs


def ours(data: dict[str, Any], users: int, repeats: int, threads: int) -> dict[str, Any]:
    """The cohort engine on the same users, with SGD."""
    torch.set_num_threads(threads)
    task = load(data, "full")
    cohort = task.cohort(users)
    private = task.private(cohort)
    assert isinstance(task.recipe, PaperRecipe)
    engine = CohortEngine(_SgdRecipe(task.recipe), task.sampler, plain_stages(LIMITS))
    seconds = timed(lambda: engine.train(task.model, cohort, private, 1), repeats)
    return {"threads": threads, "seconds": spread(seconds), "updates_per_second": rates(users, seconds)}


def theirs(python: Path, data: dict[str, Any], users: int, rounds: int, threads: int) -> dict[str, Any]:
    """The simulated backend of pfl: the same users."""
    task = load(data, "full")
    cohort = task.cohort(users)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "task.npz"
        np.savez(path, offsets=cohort.offsets, items=cohort.items, eligible=task.eligible, rows=int(data["items"]))
        worker = Path(__file__).with_name("pfl_worker.py")
        command = [str(python), str(worker), str(path), str(users), str(rounds), str(threads), str(_LR)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return {"failed": said, "mend": "give --python an environment with pfl, torch and numpy"}
    found = json.loads(done.stdout.splitlines()[-1])
    return {
        "threads": threads,
        "packages": found["packages"],
        "seconds": spread(found["seconds"][1:]),
        "updates_per_second": rates(users, found["seconds"][1:]),
    }


def rendered(result: dict[str, Any]) -> str:
    """The block of the document that shows a result."""
    figures = result["figures"]
    rows = [["pfl-research", e.get("threads", "-"), or_failure(e, "updates_per_second")] for e in figures["pfl"]]
    rows += [["cohort engine", e.get("threads", "-"), or_failure(e, "updates_per_second")] for e in figures["fedrec"]]
    return table(["", "threads", "client updates/s (SGD)"], rows)


BLOCKS = {"pfl": rendered}
"""What the documents show of a result, by the name of the block."""


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--synthetic", action="store_true")
        parser.add_argument("--python", type=Path, default=Path(sys.executable), help="an interpreter that has pfl")

    opts = options("pfl_task", __doc__, arguments, more)
    data = synthetic(opts.cache, 2_000, 1_000, 30.0) if opts.extra.synthetic else ml_1m(opts.data, opts.cache)
    users, repeats = (604, 8) if opts.full else (32, 2)
    figures: dict[str, Any] = {"pfl": [], "fedrec": [], "fedrec_over_pfl": {}}
    for threads in (1, 2) if opts.full else (1,):
        pfl = theirs(opts.extra.python, data, users, repeats + 1, threads)
        mine = case("benchmarks.pfl_task:ours", threads=threads, data=data, users=users, repeats=repeats)
        figures["pfl"].append(pfl)
        figures["fedrec"].append(mine)
        if "seconds" in pfl and "seconds" in mine:
            ratio = mine["updates_per_second"]["median"] / pfl["updates_per_second"]["median"]
            figures["fedrec_over_pfl"][str(threads)] = ratio
    configuration = {"dim": 32, "local_epochs": 2, "optimiser": "sgd", "lr": _LR, "users_per_round": users}
    return write(opts, "pfl_task", configuration, figures)


if __name__ == "__main__":
    main()
