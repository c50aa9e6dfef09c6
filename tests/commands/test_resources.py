"""What a simulation asks of Ray is checked before it starts, and said in Flower's words."""

from __future__ import annotations

import socket

import pytest
import torch

from commands.resources import cluster, explain, federation_config, require
from fedrec.config.compose import compose
from fedrec.config.schema import SimulationConfig
from fedrec.core.errors import ConfigError, FederationError

HERE = SimulationConfig(nodes=5, workers=4, cpus_per_worker=2, gpus_per_worker=0.25)


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def gpus(workers: int, share: float) -> SimulationConfig:
    return SimulationConfig(nodes=2, workers=workers, cpus_per_worker=1, gpus_per_worker=share)


def test_gpus_are_asked_for_only_if_wanted() -> None:
    assert federation_config(HERE) == (
        "num-supernodes=5 client-resources-num-cpus=2 client-resources-num-gpus=0.25 init-args-num-cpus=8"
    )
    assert "gpus" not in federation_config(gpus(2, 0.0))


@pytest.mark.parametrize("address", ["10.0.0.1:6379", "auto"])
def test_a_cluster_keeps_its_own_resources(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert cluster() == address
    assert "init-args" not in federation_config(HERE)


@pytest.mark.parametrize("address", ["", "local"])
def test_words_that_mean_no_cluster(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert cluster() is None
    assert "init-args-num-cpus=8" in federation_config(HERE)


def test_a_cluster_has_to_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        head.listen()
        port = head.getsockname()[1]
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        require(HERE)
    with pytest.raises(FederationError, match=rf"no Ray cluster answers there .*ray start --head --port {port}"):
        require(HERE)


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "somewhere", "host:", "host:abc"])
def test_an_address_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(FederationError, match=rf"RAY_ADDRESS={address}: expected host:port"):
        require(HERE)


@pytest.mark.parametrize(
    ("seen", "workers", "share"),
    [(0, 4, 0.0), (1, 1, 1.0), (1, 2, 0.5), (1, 10, 0.1), (2, 4, 0.5), (2, 2, 0.6), (4, 2, 2.0), (3, 1, 2.0)],
)
def test_gpus_that_are_there(monkeypatch: pytest.MonkeyPatch, seen: int, workers: int, share: float) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    require(gpus(workers, share))


@pytest.mark.parametrize(
    ("seen", "workers", "share", "room"),
    [(0, 1, 0.5, 0), (1, 3, 0.5, 2), (1, 2, 1.0, 1), (2, 3, 0.6, 2), (3, 2, 2.0, 1)],
)
def test_gpus_that_are_not_there(
    monkeypatch: pytest.MonkeyPatch, seen: int, workers: int, share: float, room: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    with pytest.raises(FederationError) as caught:
        require(gpus(workers, share))
    text = str(caught.value)
    assert f"simulation.workers={workers} with simulation.gpus_per_worker={share} each need more GPUs than" in text
    assert f"the {seen} that torch {torch.__version__} sees" in text
    assert f"room for {room} such workers (CUDA_VISIBLE_DEVICES is '7')" in text
    assert "simulation.gpus_per_worker=0" in text


def test_a_worker_has_part_of_one_gpu_or_whole_ones() -> None:
    with pytest.raises(ConfigError, match=r"simulation\.gpus_per_worker=1\.5: expected a fraction of one GPU"):
        compose(["simulation.gpus_per_worker=1.5"], base=None)
    compose(["simulation.gpus_per_worker=2"], base=None)


def test_only_an_empty_pool_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    assert explain("INFO round 1/3 warmup loss=0.69", HERE) is None
    line = "WARNING :   The ActorPool is empty. The system (CPUs=1.0, GPUs=0) does not meet the criteria to host at"
    text = explain(line, HERE)
    assert text is not None
    assert "no machine here has room" in text
    assert "simulation.cpus_per_worker=2 and simulation.gpus_per_worker=0.25" in text
    assert "(the last one looked at has CPUs=1.0, GPUs=0)" in text
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert "no machine of the Ray cluster 10.0.0.1:6379 has room" in str(explain(line, HERE))
