"""`fedrec simulate` on a running Ray cluster of two nodes; what workers without the server's folders are told."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from commands.processes import running

pytestmark = pytest.mark.runtime

_STARTED = "Ray runtime started"
_PATIENCE = 120.0


class Cluster:
    """Ray nodes on this machine that stand for machines, started with `ray start` and ended by their own ids."""

    def __init__(self, env: dict[str, str]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # Ray's sockets need a short path
        self.address = f"127.0.0.1:{_free_port()}"
        self._env = {**env, "RAY_USAGE_STATS_ENABLED": "0"}
        self._ray = shutil.which("ray", path=sysconfig.get_path("scripts")) or shutil.which("ray")
        self._nodes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def start(self, *before: str) -> int:
        """Start one more node, the first as the head; returns the id of its process.

        Args:
            before: A command that runs the command after it.
        """
        assert self._ray is not None
        number = len(self._nodes)
        if number == 0:
            port = self.address.rpartition(":")[2]
            which = ["--head", "--port", port, "--include-dashboard=false"]
            which += ["--ray-client-server-port", str(_free_port()), "--dashboard-port", str(_free_port())]
        else:
            which = ["--address", self.address]
        ports = ["--min-worker-port", "0", "--max-worker-port", "0"]  # two nodes on one machine: any free ones
        temporary = self.folder / str(number)
        command = [*before, self._ray, "start", "--block", *which, *ports, "--num-cpus", "1", "--temp-dir"]
        log = self.folder / f"{number}.log"
        with log.open("wb") as file:
            node = subprocess.Popen(
                [*command, str(temporary)], env=self._env, stdout=file, stderr=file, start_new_session=True
            )
        self._nodes.append(node)
        deadline = time.monotonic() + _PATIENCE
        while _STARTED not in log.read_text():
            assert node.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        return node.pid

    def __exit__(self, *error: object) -> None:
        for node in reversed(self._nodes):
            node.send_signal(signal.SIGTERM)
        for node in self._nodes:
            try:
                node.wait(timeout=30)
            except subprocess.TimeoutExpired:
                os.killpg(node.pid, signal.SIGKILL)
                node.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def cluster(place: Any) -> Iterator[Cluster]:
    with Cluster(place.env) as made:
        yield made
    deadline = time.monotonic() + 30
    while place.marked() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert place.marked() == {}


def at_work(nodes: list[int]) -> set[int]:
    """Of the Ray nodes, those below which a worker has the prepared interactions open: it serves users."""
    parents = {process.pid: process.parent for process in running()}
    found = set()
    for pid in parents:
        try:
            opened = "/items.npy" in Path(f"/proc/{pid}/maps").read_text()
        except OSError:
            continue
        above = pid
        while opened and above in parents:
            above = parents[above]
            if above in nodes:
                found.add(above)
    return found


def only_the_cluster_goes_on(place: Any, nodes: list[int]) -> bool:
    """Whether the Ray nodes are there, and soon no worker below them and nothing of Flower any more."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        left = place.marked()
        if not at_work(nodes) and not [text for text in left.values() if re.search("flower|flwr", text)]:
            return set(nodes) <= left.keys()
        time.sleep(0.2)
    return False


def test_workers_on_both_ray_nodes_give_the_same_result_as_one_process(place: Any, cluster: Cluster) -> None:
    nodes = [cluster.start(), cluster.start()]
    rounds = "strategy.rounds=20"
    process = place.start("simulation.nodes=4", rounds, RAY_ADDRESS=cluster.address)
    seen: set[int] = set()
    while process.poll() is None:
        seen |= at_work(nodes)
        time.sleep(0.2)
    status, end, err = place.finished(process)
    assert status == 0, err
    assert seen == set(nodes)
    assert f"on the Ray cluster {cluster.address}" in err
    status, alone, err = place.finished(place.start("run_id=alone", rounds, command="train"))
    assert status == 0, err
    assert end["test"] == pytest.approx(alone["test"], abs=1e-6)
    assert end["bytes_per_user"] == alone["bytes_per_user"]
    for there, here in zip(place.metrics(), place.metrics("alone"), strict=True):
        assert there["loss"] == pytest.approx(here["loss"], abs=1e-5)
        assert {**there, "loss": 0, "validation": 0} == {**here, "loss": 0, "validation": 0}
    assert only_the_cluster_goes_on(place, nodes)


def test_a_machine_without_the_servers_folders_ends_the_run_at_its_start(place: Any, cluster: Cluster) -> None:
    runs = place.folder().parent
    runs.mkdir(parents=True)
    hide = ["unshare", "--mount", "--map-root-user", "sh", "-c", f'mount -t tmpfs none "{runs}" && exec "$@"', "sh"]
    if subprocess.run([*hide, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system lets nobody hide a folder from a process")
    nodes = [cluster.start(), cluster.start(*hide)]
    status, end, _ = place.finished(place.start("simulation.nodes=4", RAY_ADDRESS=cluster.address))
    assert status == 1
    state = place.folder() / "state"
    assert re.search(rf"a worker on \S+ does not see the server's state-dir {state}: expected", end["error"])
    assert "put runs_dir (and cache_dir) on a disk that they share" in end["error"]
    assert not (place.folder() / "metrics.jsonl").exists()
    assert only_the_cluster_goes_on(place, nodes)


def test_a_cluster_outlives_runs_that_ask_for_too_much_or_are_killed(place: Any, cluster: Cluster) -> None:
    nodes = [cluster.start()]
    process = place.start("simulation.gpus_per_worker=0.5", RAY_ADDRESS=cluster.address)
    status, end, _ = place.finished(process)
    assert status == 1
    assert f"no machine of the Ray cluster {cluster.address} has room for one worker" in end["error"]
    assert "simulation.gpus_per_worker=0.5 (the last one looked at has CPUs=1.0, GPUs=0)" in end["error"]
    process = place.start("run_id=long", "strategy.rounds=5000", RAY_ADDRESS=cluster.address)
    while not at_work(nodes):
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
    process.kill()
    process.communicate()
    assert only_the_cluster_goes_on(place, nodes)
