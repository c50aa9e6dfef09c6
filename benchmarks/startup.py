"""From a command to the first finished round: `fedrec simulate`, and `flwr run . --stream`, stage by stage.

Both run the same small synthetic configuration from a copy of the project, whose apps stamp the time when a stage is
reached. The first start finds nothing prepared, and for `flwr run` no SuperLink; the later ones find what it left.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, options, spread, write
from benchmarks.rendering import in_seconds, interval, measured_with, table
from commands.flower_app import assemble
from commands.processes import Offspring, running
from commands.superlink import environment

_SMALL = ["dataset.n_users=200", "dataset.n_items=200"]
_PATIENCE = 600.0
_POLL = 0.1

# In a process's command line -> the stage that it begins.
_PROCESSES = {
    "flower-superlink": "SuperLink begun",
    "flwr-simulation": "app process begun",
    "gcs/gcs_server": "Ray begun",
    "ray::ClientAppActor": "workers begun",
}

STAGES = (
    "SuperLink begun",
    "run submitted",
    "app process begun",
    "server app imported",
    "configuration",
    "data",
    "base table",
    "baselines",
    "Ray begun",
    "workers begun",
    "client app imported",
    "first message",
    "enrolled",
    "first round",
)
"""What is reported of a start, if it was seen, as seconds since the command. Ray starts while the server prepares."""

_INJECTED = """

from fedrec import timeline as _timeline

_timeline.stamp({path!r}, {imported!r})
_timeline.install({path!r}, _timeline.{targets})
"""


def project(folder: Path, stamps: Path) -> Path:
    """A copy of the project that stamps its stages."""
    copy = assemble(folder)
    shutil.copytree(ROOT / "commands", copy / "commands", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(Path(__file__).with_name("timeline.py"), copy / "fedrec" / "timeline.py")
    # The modules that import torch, of which each app itself imports none.
    for role, module, targets in (("server", "run", "SERVER"), ("client", "app", "CLIENT")):
        with (copy / f"{role}_app" / f"{module}.py").open("a", encoding="utf-8") as file:
            file.write(_INJECTED.format(path=str(stamps), imported=f"{role} app imported", targets=targets))
    return copy


def started(
    command: Sequence[str], env: dict[str, str], cwd: Path, stamps: Path, offspring: Offspring, said: dict[str, str]
) -> dict[str, float]:
    """Run a command to its end; seconds from its start to each stage.

    Args:
        command: Program and arguments.
        env: Its whole environment.
        cwd: Its working directory.
        stamps: Where the apps leave their stamps; emptied first.
        offspring: Remembers all that is started.
        said: Text in the command's output -> the stage that it tells of.
    """
    stamps.write_text("")
    log = cwd / "command.log"
    known = {process.pid for process in running()}
    seen: dict[str, float] = {}
    begun = time.time()
    with log.open("w", encoding="utf-8") as file:
        process = offspring.start(list(command), env, cwd, stdout=file.fileno(), stderr=subprocess.STDOUT)
        while process.poll() is None:
            if time.time() - begun > _PATIENCE:
                raise SystemExit(f"{shlex.join(command)}: not done in {_PATIENCE:.0f} s, see {log}")
            _look(offspring.look() - known, seen)
            text = log.read_text(encoding="utf-8", errors="replace")
            for words, stage in said.items():
                if words in text:
                    seen.setdefault(stage, time.time())
            time.sleep(_POLL)
    lines = [json.loads(line) for line in stamps.read_text(encoding="utf-8").splitlines()]
    # The command itself imports parts of the server as well.
    server = next((line["process"] for line in lines if line["name"] == "first round"), None)
    for line in lines:
        if line["process"] == server or line["name"] in ("client app imported", "first message"):
            seen.setdefault(line["name"], line["time"])
    if process.returncode != 0 or "first round" not in seen:
        raise SystemExit(f"{shlex.join(command)}: exit status {process.returncode}\n{log.read_text()[-4000:]}")
    return {stage: seen[stage] - begun for stage in STAGES if stage in seen} | {"end": time.time() - begun}


def _look(pids: set[int], seen: dict[str, float]) -> None:
    if len(seen) and all(stage in seen for stage in _PROCESSES.values()):
        return
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        for words, stage in _PROCESSES.items():
            if words in text:
                seen.setdefault(stage, time.time())


@contextmanager
def _place() -> Iterator[tuple[Path, Path, Offspring]]:
    """A folder for one way to start, the file of its stamps, and what it has started, ended afterwards."""
    with tempfile.TemporaryDirectory(prefix="fr-", dir="/tmp") as text:  # Ray's sockets need a short path
        folder = Path(text).resolve()
        offspring = Offspring(folder / "private")
        try:
            yield folder, folder / "stamps.jsonl", offspring
        finally:
            offspring.end()


def simulate(overrides: Sequence[str], starts: int) -> list[dict[str, float]]:
    """Starts of `fedrec simulate`, one after the other, each with a SuperLink of its own."""
    with _place() as (folder, stamps, offspring):
        copy = project(folder / "project", stamps)
        env = {**os.environ, "PYTHONPATH": str(copy), "FEDREC_HOME": str(folder / "home"), "PYTHONUNBUFFERED": "1"}
        cwd = folder / "work"
        cwd.mkdir()
        command = [sys.executable, "-m", "commands.cli", "simulate", *overrides]
        said = {"\nrun ": "run submitted"}
        return [started(command, env, cwd, stamps, offspring, said) for _ in range(starts)]


def flwr_run(overrides: Sequence[str], starts: int, workers: int) -> list[dict[str, float]]:
    """Starts of `flwr run . --stream`; the first one also starts the SuperLink that serves the others."""
    with _place() as (folder, stamps, offspring):
        copy = project(folder / "project", stamps)
        private = folder / "private"
        private.mkdir()
        env = environment(private) | {"FEDREC_HOME": str(folder / "home"), "PYTHONPATH": ""}
        env["FLWR_LOCAL_SUPERLINK_HTTP_API_PORT"] = str(_free_port())
        words = f"overrides={json.dumps(shlex.join([*overrides, f'simulation.nodes={workers}']))}"
        resources = f"num-supernodes={workers} client-resources-num-cpus=1 init-args-num-cpus={workers}"
        flwr = shutil.which("flwr", path=env["PATH"]) or "flwr"
        command = [flwr, "run", ".", "--stream", "--run-config", words, "--federation-config", resources]
        said = {"Successfully started run": "run submitted"}
        return [started(command, env, copy, stamps, offspring, said) for _ in range(starts)]


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def summary(starts: list[dict[str, float]]) -> dict[str, Any]:
    """The first start, and the median of every stage of the later ones (of the first, if there is no other)."""
    later = starts[1:] or starts
    stages = [stage for stage in (*STAGES, "end") if all(stage in start for start in later)]
    return {
        "first_start": starts[0],
        "second_start": {stage: statistics.median(start[stage] for start in later) for stage in stages},
        "to_first_round": spread([start["first round"] for start in later]),
    }


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--synthetic", action="store_true", help="no other data is used in any case")


def rendered(result: dict[str, Any]) -> str:
    """When each stage of a start was reached."""
    figures = result["figures"]
    ways = {name: figures[name] for name in ("fedrec_simulate", "flwr_run")}
    stages = [stage for stage in ways["fedrec_simulate"]["first_start"] if stage != "end"]
    rows = [
        [stage, *(in_seconds(way[start], stage) for way in ways.values() for start in ("first_start", "second_start"))]
        for stage in stages
    ]
    head = ["reached", "`fedrec simulate`, first", "later", "`flwr run`, first", "later"]
    said = ", ".join(f"{interval(way['to_first_round'])} s by `{name.replace('_', ' ')}`" for name, way in ways.items())
    text = f"\nTo the first round of a later start: {said}.\n"
    return table(head, rows) + text + measured_with(result)


BLOCKS = {"startup": rendered}
"""What the documents show of a result, by the name of the block."""


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    opts = options("startup", __doc__, arguments, _arguments)
    workers = max(1, os.cpu_count() or 1) if opts.full else 1
    starts = 6 if opts.full else 1
    overrides = [*_SMALL, "strategy.rounds=3", "strategy.warmup_rounds=1"]
    own = [*overrides, f"simulation.nodes={workers}", f"simulation.workers={workers}"]
    figures = {
        "fedrec_simulate": summary(simulate(own, starts)),
        "flwr_run": summary(flwr_run(overrides, starts, workers)),
    }
    configuration = {"overrides": overrides, "nodes": workers, "workers": workers}
    return write(opts, "startup", configuration, figures)


if __name__ == "__main__":
    main()
