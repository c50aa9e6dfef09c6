"""Real processes of a federation, one of whose nodes is slow, or silent for a while."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:  # benchmarks are not installed
    sys.path.append(str(ROOT))

from benchmarks.deployment import Sites, free_ports  # noqa: E402

pytestmark = pytest.mark.runtime

NODES, USERS = 2, 20
DATA = f"dataset=synthetic dataset.n_users={USERS} dataset.n_items=60 dataset.interactions_per_user=8"
QUICK = [
    "base_table.dim=8",
    "embedding.rank=2",
    "strategy.warmup_rounds=1",
    "federation.fraction=1.0",
    "evaluation.every=0",
    "federation.min_nodes=2",
]


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Sites]:
    made = Sites(tmp_path / "federation", free_ports(NODES + 1), DATA)
    try:
        done = made.call("start", str(NODES))
        assert done.returncode == 0, done.stdout
        yield made
    finally:
        made.call("stop")
        for part in ("superlink", *(f"site-{number}" for number in range(NODES))):
            assert made.family(part) == {}, "stop leaves nothing behind"


@contextmanager
def slowed(sites: Sites, part: str, seconds: float) -> Iterator[None]:
    """Meanwhile every process that the part starts for a message stands still for so long."""
    ended, stopped = threading.Event(), dict[int, float]()

    def watch() -> None:
        while not ended.wait(0.2):
            for pid, line in sites.family(part).items():
                if "flwr-clientapp" in line and pid not in stopped:
                    stopped[pid] = time.monotonic()
                    _signal(pid, signal.SIGSTOP)
            for pid, since in stopped.items():
                if time.monotonic() - since > seconds:
                    _signal(pid, signal.SIGCONT)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        for pid in stopped:
            _signal(pid, signal.SIGCONT)


def _signal(pid: int, signum: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signum)


def records(federation: Sites, run: str) -> list[dict[str, Any]]:
    return federation.metrics(run)


def test_a_node_that_is_always_a_little_late_counts_in_every_round(federation: Sites) -> None:
    """Joining has told how slow it is: it is waited for from the first round on, and at the first ranking."""
    with slowed(federation, "site-1", 22.0):
        done = federation.call(
            "run",
            "run_id=late",
            *QUICK,
            "strategy.rounds=4",
            "federation.round_timeout=25.0",
            "federation.silent_rounds=3",
        )
    assert done.returncode == 0, done.stdout[-3000:]
    found = records(federation, "late")
    assert [each["users"] for each in found] == [USERS] * 4
    assert [each["dropped_replies"] for each in found] == [{}] * 4, "nor at the first ranking"
    assert all(each["slow_nodes"]["waited_for"] >= 1 for each in found)
    assert all(each["seconds"] < 90 for each in found), "nobody is waited for longer than three times the timeout"


def test_a_round_that_needs_a_node_that_rests_asks_it_and_goes_on(federation: Sites) -> None:
    process = federation.begin(
        "run",
        "run_id=rests",
        *QUICK,
        "strategy.rounds=4",
        "federation.round_timeout=20.0",
        "federation.silent_rounds=1",
        "federation.node_timeout=300.0",
    )
    try:
        deadline = time.monotonic() + 600
        while not records(federation, "rests"):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.2)
        with slowed(federation, "site-1", 3600.0):
            while not any(each["dropped_replies"] for each in records(federation, "rests")):
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.2)
        assert process.wait(600) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    found = records(federation, "rests")
    lossy = [each["dropped_replies"] for each in found if each["dropped_replies"]]
    assert {"no_answer", "rested"} <= lossy[0].keys()
    assert found[-1]["users"] == USERS, "both are there again"
    assert json.loads((federation.folder / "runs/rests/summary.json").read_text())["rounds"] == 4
