"""Flower apps run by the SuperLink helper of `fedrec simulate`: what a run needs, and when its first round was done."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from commands.superlink import NAME, SuperLink

_LOOK = 0.05


def run_app(
    app: Path,
    values: Mapping[str, str | int | float],
    nodes: int,
    workers: int,
    *,
    watched: Path | None = None,
    timeout: float = 3600.0,
    superlink: SuperLink | None = None,
) -> dict[str, Any]:
    """Run a Flower app once; the seconds of its stages, and the end of its log if it did not complete.

    Args:
        app: The app's directory; it is copied, so that nothing is written beside it.
        values: Its run configuration.
        nodes: SuperNodes of the simulation.
        workers: Worker processes, of one core each.
        watched: A file whose first line says that the first round is done.
        timeout: Seconds after which the run is given up.
        superlink: A running one (None: one is started for this run).
    """
    if superlink is None:
        begun = time.perf_counter()
        with SuperLink() as own:
            own.wait()
            up = time.perf_counter() - begun
            found = run_app(app, values, nodes, workers, watched=watched, timeout=timeout, superlink=own)
        return {"superlink_seconds": up, **found}
    copy = superlink.base / f"app-{time.monotonic_ns()}"
    shutil.copytree(app, copy, ignore=shutil.ignore_patterns("__pycache__"))
    config = superlink.base / f"{copy.name}.toml"
    config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()), encoding="utf-8")
    federation = f"num-supernodes={nodes} client-resources-num-cpus=1 init-args-num-cpus={workers}"
    begun = time.perf_counter()
    answer = superlink.call("run", str(copy), NAME, "--run-config", str(config), "--federation-config", federation)
    run, submitted = str(answer["run-id"]), time.perf_counter() - begun
    stream = superlink.stream(run)
    lines: list[str] = []
    assert stream.stdout is not None
    reader = threading.Thread(target=lambda: lines.extend(stream.stdout or ()), daemon=True)
    reader.start()
    first: float | None = None
    while reader.is_alive():
        if first is None and watched is not None and watched.exists() and watched.stat().st_size:
            first = time.perf_counter() - begun
        if time.perf_counter() - begun > timeout:
            return {"failed": f"not done in {timeout:.0f} s", "submit_seconds": submitted}
        superlink.check()
        superlink.offspring.look()
        reader.join(_LOOK)
    ended = time.perf_counter() - begun
    while not (status := str(superlink.call("ls", NAME, "--run-id", run)["runs"][0]["status"])).startswith("finished"):
        time.sleep(0.5)
    found: dict[str, Any] = {"submit_seconds": submitted, "run_seconds": ended, "first_round_seconds": first}
    if status != "finished:completed":
        found["failed"] = f"{status}: " + "".join(lines[-8:])
    return found


def rounds_of(path: Path, of: Callable[[dict[str, Any]], float]) -> list[float]:
    """One number of each line of a file of JSON lines."""
    return [of(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
