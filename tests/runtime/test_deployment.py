"""A federation of real processes with TLS and keys, some of which are killed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:  # benchmarks are not installed
    sys.path.append(str(ROOT))

from benchmarks.deployment import Sites, free_ports, wait  # noqa: E402

pytestmark = pytest.mark.runtime

NODES, USERS, ROUNDS = 3, 30, 14
DATA = f"dataset=synthetic dataset.n_users={USERS} dataset.n_items=60 dataset.interactions_per_user=8"
QUICK = [
    "base_table.dim=8",
    "embedding.rank=2",
    f"strategy.rounds={ROUNDS}",
    "strategy.warmup_rounds=2",
    "federation.fraction=1.0",
    "federation.silent_rounds=1",
    "evaluation.every=0",
    "checkpoint_every=2",
]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sites]:
    made = Sites(tmp_path_factory.mktemp("federation"), free_ports(NODES + 1), DATA)
    try:
        done = made.call("start", str(NODES))
        assert done.returncode == 0, done.stdout
        yield made
    finally:
        made.call("stop")
        for part in ("superlink", *(f"site-{number}" for number in range(NODES))):
            assert made.family(part) == {}, "stop leaves nothing behind"


def test_starting_again_starts_nothing_twice(federation: Sites) -> None:
    before = {part: federation.family(part) for part in ("superlink", "site-0", "site-1", "site-2")}
    assert all(before.values())
    certificate = (federation.folder / "server.pem").read_bytes()
    done = federation.call("start", str(NODES))
    assert done.returncode == 0, done.stdout
    assert all(before[part].keys() <= federation.family(part).keys() for part in before)
    assert (federation.folder / "server.pem").read_bytes() == certificate


def test_killed_nodes_and_a_killed_server_lose_nothing(federation: Sites) -> None:
    process = federation.begin("run", "run_id=kills", *QUICK, "federation.round_timeout=40.0", "federation.min_nodes=2")
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


def test_a_run_that_is_refused_says_so_and_fails(federation: Sites) -> None:
    done = federation.call("run", "resume=nothing")
    assert done.returncode != 0
    assert "there is no run 'nothing'" in done.stdout
    assert "finished:failed" in done.stdout
