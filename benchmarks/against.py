"""This checkout's speed against another's: `python -m benchmarks.against OTHER --sizes full`.

Both work in turn, each in a process of its own, on one cohort's training and on whole rounds in one process; what
counts is the ratio of each pair. Seconds are the processor's, with one thread: what else the machine does does not
count. The other checkout needs `benchmarks.task` and `benchmarks.federation` with functions of the same names.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Work = Callable[[], float]


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


def _serve(cache: Path, synthetic: bool, cohort: int, rounds: int) -> None:
    """One of the two processes: names of what is to be timed come in, seconds go out.

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
        found = works(data, cohort, rounds)
        for work in found.values():
            work()
        print(json.dumps(list(found)), file=out, flush=True)
        for line in sys.stdin:
            print(json.dumps(found[line.strip()]()), file=out, flush=True)


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

    def _said(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a checkout could not be timed, see above: exit status {self._process.wait()}")
        return line

    def seconds(self, name: str) -> float:
        assert self._process.stdin is not None
        print(name, file=self._process.stdin, flush=True)
        return float(self._said())

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


BLOCKS = {"against": rendered}
"""What the documents show of a result, by the name of the block."""


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    from benchmarks.common import ROOT, options, spread, write

    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("other", type=Path, help="a checkout of another commit, as `git worktree add` makes one")
        parser.add_argument("--synthetic", action="store_true")

    opts = options("against", __doc__, arguments, more)
    other = opts.extra.other.absolute()
    cohort, rounds, pairs = (604, 5, 25) if opts.full else (20, 1, 1)
    given = [str(int(opts.extra.synthetic)), str(cohort), str(rounds)]
    both = [_Checkout(folder, opts.cache / name, given) for name, folder in (("other", other), ("this", ROOT))]
    figures = {}
    for name in both[0].names:
        seconds: tuple[list[float], list[float]] = ([], [])
        for number in range(pairs):
            for which in (0, 1) if number % 2 else (1, 0):
                seconds[which].append(both[which].seconds(name))
        ratios = [after / before for before, after in zip(*seconds, strict=True)]
        figures[name] = {"other": spread(seconds[0]), "this": spread(seconds[1]), "ratio": spread(ratios)}
    for checkout in both:
        checkout.end()
    asked = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(asked, cwd=other, capture_output=True, text=True, check=False).stdout.strip()
    configuration = {
        "data": "synthetic" if opts.extra.synthetic else "ml_1m",
        "other": commit or other.name,
        "cohort": cohort,
    }
    return write(opts, "against", {**configuration, "nodes": 2, "rounds": rounds}, figures)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        _serve(Path(sys.argv[2]), bool(int(sys.argv[3])), int(sys.argv[4]), int(sys.argv[5]))
    else:
        main()
