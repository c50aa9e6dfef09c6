"""This checkout's speed against another's: `python -m benchmarks.against OTHER --sizes full`.

Both work in turn, each in a process of its own, on one cohort's training and on whole rounds in one process; what
counts is the ratio of each pair. Seconds are the processor's, with one thread: what else the machine does does not
count, but for the caches and the memory that it takes. With `--recipes` it is on a cohort's training by the recipe
`one_megabyte`, and on networks. The other checkout needs `benchmarks.task` and `benchmarks.federation` with functions
of the same names.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

Work = Callable[[], float]

RECIPES: Mapping[str, tuple[str, str, Sequence[str]]] = {
    "one_megabyte, compressed": ("lora", "fedmf", ["experiment=one_megabyte"]),
    "one_megabyte, warm-up": ("full", "fedmf", ["experiment=one_megabyte"]),
    "paper, P-LoRA": ("lora", "fedmf", []),
    "paper, FedNCF": ("full", "fedncf", []),
    "paper, PFedRec": ("full", "pfedrec", []),
}
"""Embedding, backbone and overrides of what is trained with `--recipes`."""

RANKED = ("fedmf", "fedncf", "pfedrec")
"""Backbones whose users are ranked with `--recipes`."""


def recipes(data: Mapping[str, Any], cohort: int, ranked: int) -> dict[str, Callable[[], Work]]:
    """What is timed with `--recipes`, by name; each makes the work, which returns seconds of the processor."""
    return {
        **{f"training {name}": partial(_trained, data, cohort, *given) for name, given in RECIPES.items()},
        **{f"ranking {name}": partial(_ranked, data, ranked, name) for name in RANKED},
    }


def _trained(data: Mapping[str, Any], cohort: int, embedding: str, backbone: str, overrides: Sequence[str]) -> Work:
    from benchmarks.task import LIMITS, load
    from fedrec.config.compose import compose
    from fedrec.core import registry
    from fedrec.stages.chain import Stages

    config, task = compose(list(overrides), base=None), load(dict(data), embedding, backbone)
    recipe = registry.optims.get(config.optim.name)(config.optim, task.model.model.backbone.advice)
    codec = registry.codecs.get(config.codec.name)(config.codec)
    made = dataclasses.replace(task, recipe=recipe).engine(stages=Stages([], codec, LIMITS))
    users = task.cohort(cohort)
    return _timed(partial(made.train, task.model, users, task.private(users), 7))


def _ranked(data: Mapping[str, Any], users: int, backbone: str) -> Work:
    from benchmarks.task import load
    from client_app.answers.evaluation import RankingProtocol, rank_users

    task = load(dict(data), "lora", backbone)
    cohort = task.cohort(users)
    protocol = RankingProtocol((5, 10, 20), task.sampler, 0, 0)
    latest = cohort.items[cohort.offsets[1:] - 1]
    return _timed(partial(rank_users, task.model, cohort, latest, task.private(cohort), protocol))


def _timed(work: Callable[[], Any]) -> Work:
    def seconds() -> float:
        started = time.process_time()
        work()
        return time.process_time() - started

    return seconds


def works(data: Mapping[str, Any], cohort: int, rounds: int) -> dict[str, Work]:
    """What is timed, by name; each returns seconds of the processor."""
    from benchmarks.federation import in_process
    from benchmarks.task import load

    def engine(embedding: str) -> Work:
        task = load(dict(data), embedding)
        users = task.cohort(cohort)
        private, made = task.private(users), task.engine()

        def training() -> float:
            started = time.process_time()
            made.train(task.model, users, private, 7)
            return time.process_time() - started

        return training

    def round_of(embedding: str) -> Work:
        return lambda: float(in_process(dict(data), embedding, cohort, rounds, 2, 1)["seconds"]["median"])

    return {
        f"{name} {embedding}": make(embedding)
        for name, make in (("engine", engine), ("round", round_of))
        for embedding in ("full", "lora")
    }


def _serve(cache: Path, synthetic: bool, chosen: str, *sizes: int) -> None:
    """One of the two processes: names of what is to be timed come in, seconds go out.

    Of what is `chosen` all is made at once, or, a work of `--recipes`, that alone.

    A round says how long it took by the monotonic clock: here that is the processor's.
    """
    time.monotonic = time.process_time

    import torch

    from benchmarks import common

    torch.set_num_threads(1)
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)
        root = Path(os.environ.get("FEDREC_DATA") or common.ROOT.parent / "shared" / "data")
        data = common.synthetic(cache, 200, 100, 12.0) if synthetic else common.ml_1m(root, cache)
        found = works(data, *sizes) if chosen == "rounds" else {chosen: recipes(data, *sizes)[chosen]()}
        for work in found.values():
            work()
        print(json.dumps(list(found)), file=out, flush=True)
        for line in sys.stdin:
            print(json.dumps([found[line.strip()](), common.peak_memory()]), file=out, flush=True)


class _Checkout:
    """A process that works with the code of a checkout."""

    def __init__(self, folder: Path, cache: Path, arguments: Sequence[str]) -> None:
        env = {**os.environ, "PYTHONPATH": str(folder)}
        env |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        command = [sys.executable, "-P", __file__, "--serve", str(cache), *arguments]
        self._process = subprocess.Popen(
            command, cwd=folder, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.names: list[str] = json.loads(self._said())
        self.peak_bytes = 0

    def _said(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a checkout could not be timed, see above: exit status {self._process.wait()}")
        return line

    def seconds(self, name: str) -> float:
        assert self._process.stdin is not None
        print(name, file=self._process.stdin, flush=True)
        seconds, self.peak_bytes = json.loads(self._said())
        return float(seconds)

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def rendered(result: dict[str, Any]) -> str:
    """The block of the document that shows a result."""
    from benchmarks.rendering import interval, table

    rows = [
        [name, interval(entry["other"]), interval(entry["this"]), interval(entry["ratio"])]
        for name, entry in result["figures"].items()
    ]
    head = ["", f"seconds at {result['configuration']['other']}", "seconds here", "ratio of a pair"]
    return table(head, rows)


def rendered_recipes(result: dict[str, Any]) -> str:
    """The block of the document that shows a result of `--recipes`."""
    from benchmarks.rendering import interval, measured_with, number, table

    rows = []
    for name, entry in result["figures"].items():
        memory = " / ".join(f"{entry['peak_bytes'][which] / 2**20:,.0f}" for which in ("other", "this"))
        faster = number(1 / entry["ratio"]["median"])
        rows.append([name, interval(entry["other"]), interval(entry["this"]), faster, memory])
    other = result["configuration"]["other"]
    head = ["", f"seconds at {other}", "seconds here", "times as fast, median of pairs", "peak MiB there / here"]
    return table(head, rows) + measured_with(result)


BLOCKS = {"against": rendered, "recipes": rendered_recipes}
"""What the documents show of a result, by the name of the block."""


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    from benchmarks.common import ROOT, options, spread, write

    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("other", type=Path, help="a checkout of another commit, as `git worktree add` makes one")
        parser.add_argument("--synthetic", action="store_true")
        parser.add_argument("--recipes", action="store_true")
        parser.add_argument("--only", help="of --recipes, what has this in its name", default="")

    given = sys.argv[1:] if arguments is None else arguments
    opts = options("recipes" if "--recipes" in given else "against", __doc__, arguments, more)
    recipes_alone, other = opts.extra.recipes, opts.extra.other.absolute()
    cohort, rounds, pairs = (604, 5, 9 if recipes_alone else 25) if opts.full else (20, 1, 1)
    sizes = [cohort, cohort] if recipes_alone else [cohort, rounds]
    chosen = [name for name in recipes({}, 0, 0) if opts.extra.only in name] if recipes_alone else ["rounds"]
    figures = {}
    for choice in chosen:
        told = [str(int(opts.extra.synthetic)), choice, *map(str, sizes)]
        both = [_Checkout(folder, opts.cache / name, told) for name, folder in (("other", other), ("this", ROOT))]
        for name in both[0].names:
            seconds: tuple[list[float], list[float]] = ([], [])
            for number in range(pairs):
                for which in (0, 1) if number % 2 else (1, 0):
                    seconds[which].append(both[which].seconds(name))
            ratios = [after / before for before, after in zip(*seconds, strict=True)]
            figures[name] = {"other": spread(seconds[0]), "this": spread(seconds[1]), "ratio": spread(ratios)}
            if recipes_alone:
                figures[name]["peak_bytes"] = {"other": both[0].peak_bytes, "this": both[1].peak_bytes}
            print(name, figures[name]["ratio"], file=sys.stderr)
        for checkout in both:
            checkout.end()
    asked = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(asked, cwd=other, capture_output=True, text=True, check=False).stdout.strip()
    configuration = {
        "data": "synthetic" if opts.extra.synthetic else "ml_1m",
        "other": commit or other.name,
        "cohort": cohort,
    }
    if recipes_alone:
        return write(opts, "recipes", configuration, figures)
    return write(opts, "against", {**configuration, "nodes": 2, "rounds": rounds}, figures)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        _serve(Path(sys.argv[2]), bool(int(sys.argv[3])), sys.argv[4], *map(int, sys.argv[5:]))
    else:
        main()
