"""What the benchmarks share: their command line, environment, repeats, and measured cases in processes of their own."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results" / "speed"
PACKAGES = ("flwr", "ray", "torch", "numpy", "scikit-learn")
FORMAT = 1

INLINE = False
"""Run cases in this process instead: quick, for tests; their peak memory then says nothing."""

_MARK = "benchmark-result:"


@dataclass(frozen=True)
class Options:
    """What every benchmark is told.

    Attributes:
        sizes: `small` (seconds, to see that it runs) or `full` (the figures that are committed).
        out: Where the result goes.
        data: Folder of the data sets.
        cache: Folder of what can be made anew; kept between runs.
        extra: The arguments that only this benchmark knows.
    """

    sizes: str
    out: Path
    data: Path
    cache: Path
    extra: argparse.Namespace

    @property
    def full(self) -> bool:
        """Whether the figures are meant to be kept."""
        return self.sizes == "full"


def options(
    name: str, about: str | None, arguments: Sequence[str] | None, more: Callable[[argparse.ArgumentParser], Any] = id
) -> Options:
    """Parse the command line of the benchmark `name`; `more` adds its own arguments."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=about)
    parser.add_argument("--sizes", choices=("small", "full"), default="small")
    parser.add_argument("--out", type=Path, default=RESULTS / f"{name}.json")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "fedrec-benchmarks")
    more(parser)
    parsed = parser.parse_args(arguments)
    data = Path(os.environ.get("FEDREC_DATA") or ROOT.parent / "shared" / "data").absolute()
    return Options(parsed.sizes, parsed.out.absolute(), data, parsed.cache.absolute(), parsed)


def environment() -> dict[str, Any]:
    """Versions and cores: what a figure depends on, and nothing that tells one machine from another like it."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "python": platform.python_version(),
        "packages": packages,
        "cores": usable,
        "memory_gib": round(memory, 1),
        "load_before": round(os.getloadavg()[0], 2),
    }


def write(opts: Options, benchmark: str, configuration: dict[str, Any], figures: dict[str, Any]) -> dict[str, Any]:
    """Write the result file, whole or not at all, and return its content."""
    result = {
        "format": FORMAT,
        "benchmark": benchmark,
        "sizes": opts.sizes,
        "environment": environment(),
        "configuration": configuration,
        "figures": figures,
    }
    opts.out.parent.mkdir(parents=True, exist_ok=True)
    temporary = opts.out.with_suffix(".part")
    temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    temporary.replace(opts.out)
    print(f"{benchmark}: written to {opts.out}", file=sys.stderr)
    if failed := _failures(figures):
        print(f"{benchmark}: {failed} cases failed, see `failed` in the result", file=sys.stderr)
    return result


def _failures(figures: Any) -> int:
    if isinstance(figures, list):
        return sum(_failures(value) for value in figures)
    if isinstance(figures, dict):
        return int("failed" in figures) + sum(_failures(value) for value in figures.values())
    return 0


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Several measurements of one thing as min, median, max and their number."""
    return {
        "min": min(values),
        "median": statistics.median(values),
        "max": max(values),
        "repeats": len(values),
    }


def rates(count: float, seconds: Sequence[float]) -> dict[str, Any]:
    """`count` things in each of several times, as things a second."""
    return spread([count / value for value in seconds])


def timed(work: Callable[[], Any], repeats: int, warm_up: int = 1) -> list[float]:
    """Wall seconds of each of several calls, after `warm_up` calls that do not count."""
    for _ in range(warm_up):
        work()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return seconds


def in_turn(works: Sequence[Callable[[], Any]], repeats: int) -> list[list[float]]:
    """Processor seconds of two pieces of work, done in turn and pair by pair, so that no drift of the machine counts.

    Each is done once before, to warm up.
    """
    seconds: list[list[float]] = [[], []]
    for number in range(repeats + 1):
        for which in (0, 1) if number % 2 else (1, 0):
            started = time.process_time()
            works[which]()
            if number:
                seconds[which].append(time.process_time() - started)
    return seconds


def peak_memory() -> int:
    """The most bytes this process has held so far."""
    try:
        # What getrusage says starts with the memory of the process that started this one.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def case(function: str, *, threads: int | None = None, timeout: float = 3600.0, **arguments: Any) -> dict[str, Any]:
    """Run `module:function(**arguments)` in a process of its own; its result, and the peak of that process's memory.

    Args:
        function: `benchmarks.<module>:<function>`; takes and returns what JSON can hold.
        threads: Threads of the libraries below torch, and given to the function for torch (None: their own default).
        timeout: Seconds after which the case counts as failed.
        arguments: Given to the function.
    """
    env = dict(os.environ)
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [env.get("PYTHONPATH")])])
    if threads is not None:
        arguments["threads"] = threads
    if INLINE:
        return _measured(function, arguments)
    if threads is not None:
        env |= {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    command = [sys.executable, "-m", "benchmarks.common", function, json.dumps(arguments)]
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done in {timeout:.0f} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if done.returncode or not lines:
        said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        print(f"{function}({arguments}) failed: {done.stderr[-2000:]}", file=sys.stderr)
        return {"failed": said}
    result: dict[str, Any] = json.loads(lines[-1].removeprefix(_MARK))
    return result


def _serve() -> None:
    """The other side of `case`."""
    print(_MARK + json.dumps(_measured(sys.argv[1], json.loads(sys.argv[2]))))


def _measured(function: str, arguments: dict[str, Any]) -> dict[str, Any]:
    module, _, name = function.partition(":")
    work = getattr(importlib.import_module(module), name)
    before = peak_memory()
    result: dict[str, Any] = work(**arguments)
    return {**result, "peak_bytes": peak_memory(), "imported_bytes": before}


def ml_1m(data: Path, cache: Path) -> dict[str, Any]:
    """MovieLens 1M, read through `dataset=table` and prepared once: paths for `benchmarks.task.load`."""
    folder = data / "ml-1m"
    files = [folder / "interactions.csv", folder / "items.csv"]
    for file in files:
        if not file.is_file():
            raise SystemExit(f"{file} is missing: set FEDREC_DATA to a folder that holds ml-1m/{file.name}")
    stamp = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    marker = cache / f"ml-1m-{hashlib.blake2b(repr(stamp).encode(), digest_size=8).hexdigest()}.json"
    if not marker.exists():
        from fedrec.config.compose import compose
        from fedrec.data.prepare import load
        from fedrec.data.store import write_store

        dataset = load(compose(table_overrides(data), base=None).dataset)
        store = write_store(dataset.interactions, cache)
        eligible = cache / f"{marker.stem}-eligible.npy"
        np.save(eligible, dataset.eligible.astype(np.int64))
        marker.write_text(json.dumps({"store": str(store), "eligible": str(eligible), "items": len(dataset.catalogue)}))
    found: dict[str, Any] = json.loads(marker.read_text())
    return found


def table_overrides(data: Path) -> list[str]:
    """The overrides that read MovieLens 1M as a table."""
    folder = data / "ml-1m"
    return [
        "dataset=table",
        f"dataset.interactions={folder}/interactions.csv",
        f"dataset.item_table={folder}/items.csv",
    ]


def synthetic(cache: Path, users: int, items: int, history: float) -> dict[str, Any]:
    """A synthetic store of that size, made once in a process of its own: paths for `benchmarks.task.load`."""
    marker = cache / f"synthetic-{users}-{items}-{history:g}.json"
    if not marker.exists():
        made = case("benchmarks.task:make_synthetic", cache=str(cache), users=users, items=items, history=history)
        if "failed" in made:
            raise SystemExit(f"the synthetic data could not be made: {made['failed']}")
        marker.write_text(json.dumps(made))
    found: dict[str, Any] = json.loads(marker.read_text())
    return {name: found[name] for name in ("store", "eligible", "items")}


if __name__ == "__main__":
    _serve()
