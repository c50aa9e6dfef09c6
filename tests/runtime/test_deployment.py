"""A federation of real processes with TLS and keys, some of which are killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.runtime

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "deploy" / "local-federation.sh"
NODES, USERS, ROUNDS = 3, 30, 14
DATA = f"dataset=synthetic dataset.n_users={USERS} dataset.n_items=60 dataset.interactions_per_user=8"
QUICK = [
    "base_table.dim=8",
    "embedding.rank=2",
    f"strategy.rounds={ROUNDS}",
    "strategy.warmup_rounds=2",
    "strategy.fraction=1.0",
    "strategy.silent_rounds=1",
    "evaluation.every=0",
    "checkpoint_every=2",
]


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


class Federation:
    """What the script has started in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.env = {
            **os.environ,
            "PATH": programs,
            "PYTHONPATH": str(ROOT),
            "FEDREC_HOME": str(folder / "home"),
            "PORT": str(free_ports(NODES + 1)),
            "DATA": DATA,
        }

    def call(self, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(SCRIPT), command, str(self.folder), *arguments],
            env=self.env,
            check=False,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=1200,
        )

    def begin(self, *overrides: str) -> subprocess.Popen[bytes]:
        log = (self.folder / "run.log").open("ab")
        command = [str(SCRIPT), "run", str(self.folder), *overrides]
        return subprocess.Popen(command, env=self.env, stdout=log, stderr=log)

    def family(self, part: str) -> dict[int, str]:
        """The processes of `superlink` or `site-<n>`, with their command lines."""
        mark, found = f"FLWR_HOME={self.folder / part}/home".encode(), {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
        return found

    def kill(self, part: str) -> None:
        for pid in self.family(part):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        wait(lambda: not self.family(part), 30)

    def metrics(self, run: str) -> list[dict[str, Any]]:
        path = self.folder / "runs" / run / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait(until: Callable[[], Any], seconds: float = 600.0, process: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline, "it did not come to that"
        assert process is None or process.poll() is None, "the run has ended"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    made = Federation(tmp_path_factory.mktemp("federation"))
    try:
        done = made.call("start", str(NODES))
        assert done.returncode == 0, done.stdout
        yield made
    finally:
        made.call("stop")
        for part in ("superlink", *(f"site-{number}" for number in range(NODES))):
            assert made.family(part) == {}, "stop leaves nothing behind"


def test_starting_again_starts_nothing_twice(federation: Federation) -> None:
    before = {part: federation.family(part) for part in ("superlink", "site-0", "site-1", "site-2")}
    assert all(before.values())
    certificate = (federation.folder / "server.pem").read_bytes()
    done = federation.call("start", str(NODES))
    assert done.returncode == 0, done.stdout
    assert all(before[part].keys() <= federation.family(part).keys() for part in before)
    assert (federation.folder / "server.pem").read_bytes() == certificate


def test_killed_nodes_and_a_killed_server_lose_nothing(federation: Federation) -> None:
    process = federation.begin("run_id=kills", *QUICK, "strategy.round_timeout=40.0", "strategy.min_nodes=2")
    try:
        wait(lambda: [each["users"] for each in federation.metrics("kills")][-1:] == [USERS], process=process)
        # In the middle of a round: while the node's client is at work.
        wait(lambda: any("flwr-clientapp" in line for line in federation.family("site-1").values()), process=process)
        federation.kill("site-1")
        wait(lambda: any(each["dropped_replies"] for each in federation.metrics("kills")), process=process)
        lossy = next(each for each in federation.metrics("kills") if each["dropped_replies"])
        assert lossy["users"] == USERS * 2 // 3
        assert lossy["dropped_replies"].keys() <= {"no_answer", "rested", "failed"}
        wait(lambda: any((federation.folder / "runs/kills/checkpoints").glob("*.json")), process=process)
        federation.kill("superlink")  # and with it the ServerApp
    finally:
        process.kill()
        process.wait()
    known = federation.metrics("kills")
    assert len(known) < ROUNDS
    done = federation.call("start", str(NODES))  # the SuperLink with its database, and node 1 with its key
    assert done.returncode == 0, done.stdout
    done = federation.call("run", "resume=kills")
    assert done.returncode == 0, done.stdout[-3000:]
    records = federation.metrics("kills")
    assert [each["round"] for each in records] == list(range(1, ROUNDS + 1))
    assert [each["dropped_replies"] for each in records[-2:]] == [{}, {}]
    assert records[-1]["users"] == USERS
    assert sum(each["cold_users"] for each in records) == USERS, "the killed node's users were not started anew"
    summary = json.loads((federation.folder / "runs/kills/summary.json").read_text())
    assert summary["test"]["users"] == 28, "two have too few interactions to be ranked"
    (resumed,) = json.loads((federation.folder / "runs/kills/manifest.json").read_text())["resumed"]
    assert resumed["after_round"] % 2 == 0
    assert resumed["after_round"] <= len(known)


def test_a_run_that_is_refused_says_so_and_fails(federation: Federation) -> None:
    done = federation.call("run", "resume=nothing")
    assert done.returncode != 0
    assert "there is no run 'nothing'" in done.stdout
    assert "finished:failed" in done.stdout
