"""A real federation on this machine, with TLS and keys, of whose SuperNodes two are killed; beside it the simulation.

MovieLens 100K shared out by user among eight sites, each with its own file. In the middle of the run two SuperNodes get
SIGKILL, with all their processes; later one of them is started again. The simulation has the same seed and
configuration, and loses nobody. Users' keys come from the sites' own secrets, so the two choose other cohorts.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, options, spread, write
from benchmarks.rendering import interval, measured_with, table

SCRIPT = ROOT / "deploy" / "local-federation.sh"
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def free_ports(count: int) -> int:
    """The first of so many ports in a row on which nobody listens."""
    for first in range(20_000 + os.getpid() % 20_000, 60_000, count):
        probes = [socket.socket() for _ in range(count)]
        try:
            for port, probe in enumerate(probes, first):
                probe.bind(("127.0.0.1", port))
            return first
        except OSError:
            continue
        finally:
            for probe in probes:
                probe.close()
    raise AssertionError("no free ports")


def wait(until: Callable[[], Any], seconds: float = 600.0, process: subprocess.Popen[bytes] | None = None) -> None:
    """Until something holds, while a process still runs, if one is given."""
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline, "it did not come to that"
        assert process is None or process.poll() is None, "the run has ended"
        time.sleep(0.05)


class Sites:
    """The processes that the script has started in a folder: `superlink`, and `site-0`, `site-1`, ..."""

    def __init__(self, folder: Path, port: int, data: str) -> None:
        self.folder = folder
        programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        own = {"PATH": programs, "PYTHONPATH": str(ROOT), "FEDREC_HOME": f"{folder}/home", "PORT": str(port)}
        self.env = {**os.environ, **own, "DATA": data}

    def call(self, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the script to its end; its output is kept, whatever its exit status."""
        return subprocess.run(
            [str(SCRIPT), command, str(self.folder), *arguments],
            env=self.env,
            check=False,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def must(self, command: str, *arguments: str) -> None:
        """Run a command of the script to its end. Raises SystemExit with its output if it fails."""
        done = self.call(command, *arguments)
        if done.returncode:
            raise SystemExit(f"{command} failed with {done.returncode} in {self.folder}:\n{done.stdout[-3000:]}")

    def begin(self, command: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a command of the script, which writes to `<command>.log` in the folder."""
        with (self.folder / f"{command}.log").open("ab") as log:
            return subprocess.Popen(
                [str(SCRIPT), command, str(self.folder), *arguments], env=self.env, stdout=log, stderr=log
            )

    def family(self, part: str) -> dict[int, str]:
        """The command lines by pid of a part: the SuperLink and its ServerApp, or a SuperNode and its clients."""
        mark, found = f"FLWR_HOME={self.folder / part}/home".encode(), {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
        return found

    def kill(self, part: str) -> None:
        """SIGKILL for all processes of a part, until none is left."""
        while pids := self.family(part):
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.05)

    def metrics(self, run: str) -> list[dict[str, Any]]:
        """The lines of the run's metrics so far, an object for each round."""
        path = self.folder / "runs" / run / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Usage(threading.Thread):
    """Looks once in a while at the memory and the processor time of one part."""

    def __init__(self, sites: Sites, part: str) -> None:
        super().__init__(daemon=True)
        self.sites, self.part = sites, part
        self.ended = threading.Event()
        self.memory: list[int] = []
        self.seconds: dict[int, float] = {}

    def run(self) -> None:
        """Look until `ended` is set."""
        while not self.ended.wait(0.5):
            self.memory.append(self.look())

    def look(self) -> int:
        """Bytes of the part's processes now; their processor seconds are kept by process."""
        total = 0
        for pid in self.sites.family(self.part):
            try:
                total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                self.seconds[pid] = (int(fields[11]) + int(fields[12])) / _TICKS
            except (OSError, IndexError):
                continue
        return total


def rendered(result: dict[str, Any]) -> str:
    """A federation of real processes beside its simulation, and what a SuperNode needs."""
    figures, chosen = result["figures"], result["configuration"]
    rows = []
    for name in ("deployment", "simulation"):
        test, moved = figures[name]["test"], figures[name]["bytes_per_user"]
        cells = [f"{test['ndcg@10']:.4f}", f"{test['hr@10']:.4f}", f"{test['users']:,.0f}"]
        rows.append([name, *cells, *(f"{moved[way]:,.0f}" for way in ("up", "down", "one_time"))])
    head = ["", "NDCG@10", "HR@10", "users ranked", "up, bytes per user", "down", "once"]
    node, lost = figures["supernode"], figures["lost"]
    named = ", ".join(f"`{entry['reason']}` {entry['replies']}" for entry in lost) or "nothing"
    text = (
        f"\n{chosen['nodes']} SuperNodes and {len(figures['rounds'])} rounds, two killed after round "
        f"{chosen['killed_after']}, one of them back after round {chosen['back_after']}. Started in "
        f"{figures['start_seconds']:.0f} s, certificates and data included; the run took "
        f"{figures['run_seconds']:.0f} s, a round {interval(figures['round_seconds'])} s. Lost on the way: {named}.\n\n"
        f"A SuperNode at rest holds {node['rest_bytes'] / 1e6:.0f} MB and takes "
        f"{100 * node['rest_cpu_share']:.1f} % of a core; at work, with its clients' processes, "
        f"{node['work_bytes'] / 1e6:.0f} MB at most, and "
        f"{node['work_cpu_seconds']:.0f} s of a core for the whole run.\n"
    )
    return table(head, rows) + text + measured_with(result)


BLOCKS = {"deployment": rendered}
"""What the documents show of a result, by the name of the block."""


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--folder", type=Path, help="where the federation lives (default: a temporary folder)")
        parser.add_argument("--port", type=int, default=45080)

    opts = options("deployment", __doc__, arguments, more)
    nodes, rounds, kill_at, back_at = (8, 30, 8, 16) if opts.full else (3, 4, 1, 2)
    data = f"dataset=ml_100k dataset.root={opts.data / 'ml-100k'}" if opts.full else "dataset=synthetic"
    killed = ["site-1", "site-2"]
    common = [f"strategy.rounds={rounds}", f"strategy.warmup_rounds={max(1, rounds // 6)}", "seed=0"]
    common += [f"evaluation.every={max(1, rounds // 3)}", "checkpoint_every=5", "run_id=run"]
    folder = opts.extra.folder or Path(tempfile.mkdtemp(prefix="fedrec-federation-"))
    sites = Sites(folder, opts.extra.port, data)
    try:
        started = time.perf_counter()
        sites.must("start", str(nodes))
        start_seconds = time.perf_counter() - started
        rest = Usage(sites, "site-0")
        time.sleep(10)
        rest_bytes, before = rest.look(), sum(rest.seconds.values())
        time.sleep(20)
        rest.look()
        rest_cpu = (sum(rest.seconds.values()) - before) / 20
        usage = Usage(sites, "site-0")
        usage.start()
        started = time.perf_counter()
        run = sites.begin("run", *common, f"federation.min_nodes={nodes // 2}")
        restarting: subprocess.Popen[bytes] | None = None
        while run.poll() is None:
            done = len(sites.metrics("run"))
            if killed and done >= kill_at:
                while killed:
                    sites.kill(killed.pop())
            if restarting is None and done >= back_at:
                restarting = sites.begin("node", "1")
            time.sleep(0.5)
        run_seconds = time.perf_counter() - started
        usage.ended.set()
        usage.join()
        if run.returncode or restarting is None or restarting.wait():
            raise SystemExit(f"the run or the restart failed: see {folder}")
    finally:
        sites.call("stop")
    lines = sites.metrics("run")
    summary = json.loads((folder / "runs" / "run" / "summary.json").read_text())
    simulated = _simulated(common, data.split(), folder)
    lost: dict[str, int] = {}
    for line in lines:
        for name, count in line["dropped_replies"].items():
            lost[name] = lost.get(name, 0) + count
    figures = {
        "start_seconds": start_seconds,
        "run_seconds": run_seconds,
        "round_seconds": spread([line["seconds"] for line in lines]),
        "rounds": [{name: line[name] for name in ("round", "users", "seconds")} for line in lines],
        "lost": [{"reason": name, "replies": count} for name, count in lost.items()],
        "supernode": {
            "rest_bytes": rest_bytes,
            "rest_cpu_share": rest_cpu,
            "work_bytes": max(usage.memory),
            "work_cpu_seconds": sum(usage.seconds.values()) - sum(rest.seconds.values()),
        },
        "deployment": _outcome(summary),
        "simulation": _outcome(simulated),
    }
    configuration = {"nodes": nodes, "data": data.split()[0], "killed_after": kill_at, "back_after": back_at}
    configuration |= {"overrides": common, "restarted": 1, "killed": 2}
    if opts.full:
        log = (folder / "runs" / "run" / "log.txt").read_text(encoding="utf-8")
        opts.out.with_suffix(".log").write_text(log.replace(f"{folder}/", ""), encoding="utf-8")
    return write(opts, "deployment", configuration, figures)


def _simulated(common: Sequence[str], data: Sequence[str], folder: Path) -> dict[str, Any]:
    """The summary of the same run in one process."""
    command = [sys.executable, "-m", "commands.cli", "train", *common, *data, f"runs_dir={folder}/simulated", "--json"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "FEDREC_HOME": f"{folder}/home"}
    done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
    summary: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    return summary


def _outcome(summary: dict[str, Any]) -> dict[str, Any]:
    metrics = {name: summary["test"][name] for name in ("ndcg@10", "hr@10", "users")}
    moved = {name: summary["bytes_per_user"][name] for name in ("up", "down", "one_time")}
    return {"test": metrics, "bytes_per_user": moved}


if __name__ == "__main__":
    main()
