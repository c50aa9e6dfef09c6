"""Secure sums with distributed noise between real processes, with TLS and keys; some of them are killed."""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen

import pytest

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:  # benchmarks are not installed
    sys.path.append(str(ROOT))

from benchmarks.deployment import Sites, free_ports, wait  # noqa: E402

pytestmark = pytest.mark.runtime

USERS_EACH = 6
MASKED = [
    "aggregation=secagg",
    "privacy=distributed_gaussian",
    "privacy.epsilon=50",
    "federation.fraction=1.0",
    "federation.min_nodes=3",
    "strategy=full",
    "base_table.dim=4",
    "evaluation.every=0",
    "run_id=masked",
]


@contextmanager
def masked_run(
    folder: Path, nodes: int, rounds: int, survivors: int, timeout: float
) -> Iterator[tuple[Sites, Popen[bytes]]]:
    """A federation of so many SuperNodes, and its run; both are ended afterwards."""
    users = f"dataset.n_users={nodes * USERS_EACH}"
    data = f"dataset=synthetic {users} dataset.n_items=40 dataset.interactions_per_user=8"
    sites, process = Sites(folder, free_ports(nodes + 1), data), None
    try:
        done = sites.call("start", str(nodes))
        assert done.returncode == 0, done.stdout
        given = [f"strategy.rounds={rounds}", f"privacy.survivors={survivors}", f"federation.round_timeout={timeout}"]
        process = sites.begin("run", *MASKED, *given)
        yield sites, process
    finally:
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()
        sites.call("stop")


def kill_at_work(sites: Sites, process: Popen[bytes], name: str, after: int) -> None:
    """Kill a site while it answers, once so many rounds are done."""
    wait(lambda: len(sites.metrics("masked")) >= after, 2400.0, process)
    wait(lambda: any("flwr-clientapp" in line for line in sites.family(name).values()), process=process)
    sites.kill(name)


def require_nothing_secret_left(sites: Sites, numbers: list[int], rounds: int) -> None:
    """Of the sites that stayed: after the last round no secret of a sum is there, and its files are nobody else's."""
    for site in numbers:
        state = sites.folder / f"site-{site}" / "state"
        (path,) = (state / "secure").rglob("record.json")
        kept = json.loads(path.read_text())
        assert (kept["round"], kept["stage"]) == (rounds, "unmask")
        assert not any(kept[name] for name in ("own", "mask", "channel", "opening", "held"))
        assert {stat.S_IMODE(each.stat().st_mode) for each in (path, state / "identity")} == {0o600}


def test_a_killed_site_costs_its_own_part_and_no_secret_stays(tmp_path: Path) -> None:
    with masked_run(tmp_path / "federation", 4, 3, 12, 60.0) as (sites, process):
        kill_at_work(sites, process, "site-1", 1)
        assert process.wait(timeout=900) == 0
        records = sites.metrics("masked")
        assert [each["round"] for each in records] == [1, 2, 3]
        assert [each["users"] for each in records] == [24, 18, 18]
        assert all(each["releases"][0]["mechanism"] == "skellam" for each in records)
        assert not any(each.get("unchanged") for each in records)
        require_nothing_secret_left(sites, [0, 2, 3], 3)


def test_ten_rounds_of_eight_sites_go_on_without_the_two_that_are_killed(tmp_path: Path) -> None:
    with masked_run(tmp_path / "federation", 8, 10, 24, 240.0) as (sites, process):
        kill_at_work(sites, process, "site-1", 2)
        kill_at_work(sites, process, "site-6", 5)
        assert process.wait(timeout=3600) == 0
        records = sites.metrics("masked")
        assert [each["round"] for each in records] == list(range(1, 11))
        users = [each["users"] for each in records]
        assert users == sorted(users, reverse=True)
        assert (users[0], users[4], users[-1]) == (48, 42, 36)
        assert set(users) == {48, 42, 36}
        assert all(each["releases"][0]["mechanism"] == "skellam" for each in records)
        assert not any(each.get("unchanged") for each in records), "no round had too little noise"
        ledger = (sites.folder / "runs" / "masked" / "ledger.jsonl").read_text().splitlines()
        assert [json.loads(line)["round"] for line in ledger] == list(range(1, 11))
        require_nothing_secret_left(sites, [0, 2, 3, 4, 5, 7], 10)
