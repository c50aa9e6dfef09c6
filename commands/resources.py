"""What a simulation asks of Ray: checked before anything starts, given in Flower's terms, explained if it is too much.

Ray itself is Flower's business. It waits for what it does not have, and Flower then only says that its pool is empty.
"""

from __future__ import annotations

import os
import re
import socket
from contextlib import closing

from fedrec.config.schema import SimulationConfig
from fedrec.core.errors import FederationError

_PATIENCE = 10.0
_EMPTY_POOL = re.compile(r"The ActorPool is empty\. The system \((.*?)\)")


def cluster() -> str | None:
    """The address of the running Ray cluster that the user has named; None if Ray is started for this run alone."""
    address = os.environ.get("RAY_ADDRESS", "")
    return None if address in ("", "local") else address


def require(simulation: SimulationConfig) -> None:
    """Raise a FederationError if the cluster that was named does not answer, or this machine lacks the GPUs."""
    address = cluster()
    if address is None:
        _require_gpus(simulation)
    elif address != "auto":  # which Ray finds by itself
        _require_answer(address)


def federation_config(simulation: SimulationConfig) -> str:
    """Nodes and resources in the words of `flwr run --federation-config`."""
    words: dict[str, float] = {
        "num-supernodes": simulation.nodes,
        "client-resources-num-cpus": simulation.cpus_per_worker,
    }
    if simulation.gpus_per_worker:
        words["client-resources-num-gpus"] = simulation.gpus_per_worker
    if cluster() is None:  # a running cluster has its resources; giving it others is an error of Ray's
        words["init-args-num-cpus"] = simulation.workers * simulation.cpus_per_worker
    return " ".join(f"{key}={value}" for key, value in words.items())


def explain(line: str, simulation: SimulationConfig) -> str | None:
    """What a line of Flower's log means, if it says that no machine has room for a worker; otherwise None."""
    found = _EMPTY_POOL.search(line)
    if found is None:
        return None
    where = f"of the Ray cluster {address}" if (address := cluster()) else "here"
    return (
        f"no machine {where} has room for one worker of simulation.cpus_per_worker={simulation.cpus_per_worker} and "
        f"simulation.gpus_per_worker={simulation.gpus_per_worker} (the last one looked at has {found[1]}): ask for "
        "less, or give Ray more (`ray status` shows what a cluster has)"
    )


def _require_answer(address: str) -> None:
    host, colon, port = address.rpartition(":")
    if not colon or "/" in address or not port.isdigit():
        raise FederationError(
            f"RAY_ADDRESS={address}: expected host:port of a cluster's head, as `ray start --head` prints it, or auto"
        )
    try:
        with closing(socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE)):
            return
    except (OSError, OverflowError) as error:
        raise FederationError(
            f"RAY_ADDRESS={address}: no Ray cluster answers there ({error}): start its head (`ray start --head "
            f"--port {port}`), correct the address, or unset the variable to start Ray for this run alone"
        ) from error


def _require_gpus(simulation: SimulationConfig) -> None:
    share, workers = simulation.gpus_per_worker, simulation.workers
    if not share:
        return
    import torch  # takes seconds, and only this question needs it

    seen = torch.cuda.device_count()
    # A worker's fraction is of one GPU: it never lies on two.
    room = int(seen / share) if share > 1 else seen * int(1 / share + 1e-9)
    if workers > room:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        raise FederationError(
            f"simulation.workers={workers} with simulation.gpus_per_worker={share} each need more GPUs than the {seen} "
            f"that torch {torch.__version__} sees on this machine, which have room for {room} such workers "
            f"(CUDA_VISIBLE_DEVICES is {'not set' if visible is None else repr(visible)}): ask for fewer workers or "
            "smaller fractions, install the CUDA build of torch, or set simulation.gpus_per_worker=0"
        )
