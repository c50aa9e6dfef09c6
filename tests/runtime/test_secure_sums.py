"""Secure sums with distributed noise between real processes, with TLS and keys; one of them is killed."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:  # benchmarks are not installed
    sys.path.append(str(ROOT))

from benchmarks.deployment import Sites, free_ports, wait  # noqa: E402

pytestmark = pytest.mark.runtime

NODES, USERS, ROUNDS = 4, 24, 3
DATA = f"dataset=synthetic dataset.n_users={USERS} dataset.n_items=40 dataset.interactions_per_user=8"
MASKED = [
    "aggregation=secagg",
    "privacy=distributed_gaussian",
    "privacy.survivors=12",
    "privacy.epsilon=50",
    "federation.fraction=1.0",
    "federation.min_nodes=3",
    "federation.round_timeout=60.0",
    "strategy=full",
    f"strategy.rounds={ROUNDS}",
    "base_table.dim=4",
    "evaluation.every=0",
    "run_id=masked",
]


def test_a_killed_site_costs_its_own_part_and_no_secret_stays(tmp_path: Path) -> None:
    sites = Sites(tmp_path / "federation", free_ports(NODES + 1), DATA)
    process = None
    try:
        done = sites.call("start", str(NODES))
        assert done.returncode == 0, done.stdout
        process = sites.begin("run", *MASKED)
        wait(lambda: sites.metrics("masked"), process=process)
        wait(lambda: any("flwr-clientapp" in line for line in sites.family("site-1").values()), process=process)
        sites.kill("site-1")
        assert process.wait(timeout=900) == 0
        records = sites.metrics("masked")
        assert [each["round"] for each in records] == list(range(1, ROUNDS + 1))
        assert [each["users"] for each in records] == [USERS, *[USERS * 3 // 4] * (ROUNDS - 1)]
        assert all(each["releases"][0]["mechanism"] == "skellam" for each in records)
        assert not any(each.get("unchanged") for each in records)
        for site in (0, 2, 3):
            state = sites.folder / f"site-{site}" / "state"
            (path,) = (state / "secure").rglob("record.json")
            kept = json.loads(path.read_text())
            assert (kept["round"], kept["stage"]) == (ROUNDS, "unmask")
            assert not any(kept[name] for name in ("own", "mask", "channel", "opening", "held"))
            assert {stat.S_IMODE(each.stat().st_mode) for each in (path, state / "identity")} == {0o600}
    finally:
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()
        sites.call("stop")
