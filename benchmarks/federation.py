"""Whole rounds of fedrec: on the in-process grid over a prepared store, and through Flower's simulation."""

from __future__ import annotations

import json
import shlex
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from benchmarks.common import spread
from benchmarks.flower import run_app
from benchmarks.phases import ROUND, clocked
from client_app.answers.app import app as client_app
from commands.flower_app import assemble
from commands.local_grid import LocalGrid
from federation.base import FederatedStrategy
from federation.checkpoint import Checkpoint
from fedrec.config.compose import compose
from fedrec.core import registry
from fedrec.core.rng import generator
from fedrec.core.shared_folder import leave_token
from fedrec.core.tensors import content_digest
from fedrec.data.store import open_store
from fedrec.wire.eligible import pack_eligible
from fedrec.wire.protocol import SimulatedData
from server_app.run_folder import METRICS, SUMMARY
from server_app.setup import make_setup


class EnoughError(Exception):
    """All rounds that are to be measured have been."""


class _Watch:
    """The strategy's observer: keeps every round's record, and ends the run after so many.

    The last round of a run is followed by a ranking of all users, which is not what is measured here: one more is
    configured, and never begins.
    """

    def __init__(self, rounds: int) -> None:
        self.records: list[dict[str, Any]] = []
        self._rounds = rounds

    def on_round(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        if len(self.records) == self._rounds:
            raise EnoughError

    def on_checkpoint(self, checkpoint: Checkpoint) -> None:
        pass


def in_process(
    data: dict[str, Any],
    embedding: str,
    users_per_round: int,
    rounds: int,
    nodes: int,
    threads: int,
    phases: bool = False,
    warm_up: int = 1,
    recipe: Sequence[str] = (),
) -> dict[str, Any]:
    """Rounds of the real server and clients in this process, without evaluation; seconds of each after the first.

    `recipe` are overrides beside those of the embedding and of the number of users and rounds.
    """
    torch.set_num_threads(threads)
    strategy, watch, folder = strategy_over(data, embedding, users_per_round, rounds + warm_up, nodes, recipe)
    try:
        started = time.perf_counter()
        with clocked(ROUND if phases else ()) as clock, suppress(EnoughError):
            strategy.start(LocalGrid(client_app, nodes))
        whole = time.perf_counter() - started
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    seconds = [float(record["seconds"]) for record in watch.records[warm_up:]]
    cohort = int(watch.records[-1]["users"])
    found: dict[str, Any] = {
        "embedding": embedding,
        "users_per_round": cohort,
        "nodes": nodes,
        "threads": threads,
        "examples_per_round": float(np.mean([record["examples"] for record in watch.records])),
        "seconds": spread(seconds),
        "updates_per_second": spread([cohort / value for value in seconds]),
        "enrolment_and_first_round_seconds": whole - sum(seconds),
    }
    if phases:
        everything = len(watch.records)
        found["part_seconds"] = {part: spent / everything for part, spent in clock.seconds.items()}
        found["round_seconds_timed"] = float(np.mean([record["seconds"] for record in watch.records]))
        found["not_found"] = clock.not_found
    return found


def strategy_over(
    data: dict[str, Any], embedding: str, users_per_round: int, rounds: int, nodes: int, recipe: Sequence[str]
) -> tuple[FederatedStrategy, _Watch, Path]:
    """A strategy of one phase over a prepared store, as `server_app.run` makes it, with a random base table."""
    interactions = open_store(Path(data["store"]))
    eligible, items = np.load(data["eligible"], mmap_mode="r"), int(data["items"])
    strategy = ["strategy=full"] if embedding == "full" else [f"embedding={embedding}", "strategy.warmup_rounds=0"]
    fraction = min(1.0, users_per_round / interactions.users)
    folder = Path(tempfile.mkdtemp(prefix="fedrec-benchmark-"))
    overrides = [*recipe, *strategy, f"strategy.rounds={rounds + 1}", f"federation.fraction={fraction!r}"]
    overrides += [f"simulation.nodes={nodes}", "evaluation.every=0", "checkpoint_every=0", "run_id=benchmark"]
    config = compose(overrides, base=None)
    listed = pack_eligible(eligible, items)
    place = SimulatedData(str(data["store"]), str(folder), leave_token(folder))
    setup = make_setup(config, items, "", content_digest(listed), place)
    base = torch.randn(items, setup.dim, generator=generator(0, "benchmark")) / setup.dim**0.5
    watch = _Watch(rounds)
    made = registry.strategies.get(config.strategy.name)(config, setup, base, listed, watch)
    return cast(FederatedStrategy, made), watch, folder


_INJECTED = """

from fedrec.phase_clock import install as _install

_install({folder!r}, {role!r}, ("", {module!r}, {name!r}))
"""


def simulation(
    overrides: Sequence[str], cache: Path, rounds: int, nodes: int, workers: int, *, phases: bool = False
) -> dict[str, Any]:
    """One run through Flower's simulation, from the start of the SuperLink; seconds of its stages and of each round.

    Args:
        overrides: What `fedrec simulate` would be given, without folders, rounds and nodes.
        cache: The run's `cache_dir`.
        rounds: Rounds of the run.
        nodes: SuperNodes that share the users.
        workers: Ray's workers.
        phases: Time the parts of a round inside the processes of the run, too (this costs a little).
    """
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        run = folder / "runs" / "benchmark"
        app = assemble(folder / "app")
        if phases:
            shutil.copyfile(Path(__file__).with_name("phases.py"), app / "fedrec" / "phase_clock.py")
            (folder / "clocks").mkdir()
            for role, module, name in (
                ("client", "client_app.answers.node", "Node.train"),
                ("server", "server_app.watching", "Recorder.on_round"),
            ):
                with (app / f"{role}_app" / "app.py").open("a", encoding="utf-8") as file:
                    clocks = str(folder / "clocks")
                    file.write(_INJECTED.format(folder=clocks, role=role, module=module, name=name))
        given = [*overrides, f"strategy.rounds={rounds}", f"simulation.nodes={nodes}", "run_id=benchmark"]
        given += [f"runs_dir={folder / 'runs'}", f"cache_dir={cache}"]
        values = {"overrides": shlex.join(given)}
        found: dict[str, Any] = {"rounds": rounds, "nodes": nodes, "workers": workers}
        found |= run_app(app, values, nodes, workers, watched=run / METRICS)
        if (run / METRICS).exists():
            records = [json.loads(line) for line in (run / METRICS).read_text(encoding="utf-8").splitlines()]
            found |= _of_rounds(records)
        if (run / SUMMARY).exists():
            summary = json.loads((run / SUMMARY).read_text(encoding="utf-8"))
            found["training_seconds"] = summary["training_seconds"]
        if phases:
            clocks_found = [json.loads(path.read_text()) for path in sorted((folder / "clocks").iterdir())]
            found["part_seconds"] = {
                f"{clock['role']}-{number}": {part: spent / rounds for part, spent in clock["seconds"].items()}
                for number, clock in enumerate(clocks_found)
            }
        return found


def _of_rounds(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Seconds of the rounds after the first, those with a validation apart, and client updates a second."""
    seconds = [float(record["seconds"]) for record in records]
    ranked = [number for number, record in enumerate(records) if "validation" in record]
    # A ranking takes its time in its own round or in the next one, on whose messages it rode.
    touched = {0, *ranked, *(number + 1 for number in ranked)}
    plain = [value for number, value in enumerate(seconds) if number not in touched]
    validated = [max(seconds[number : number + 2]) for number in ranked if number]
    users = int(records[-1]["users"])
    found: dict[str, Any] = {"users_per_round": users, "first_round_alone_seconds": float(records[0]["seconds"])}
    if plain:
        found["seconds"] = spread(plain)
        found["updates_per_second"] = spread([users / value for value in plain])
    if validated:
        found["seconds_with_validation"] = spread(validated)
    return found
