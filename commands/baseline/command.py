"""`fedrec baseline`: one baseline on the data, split and candidates of a run, with a folder like a run's."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from commands.baseline.central import train_centrally
from commands.baseline.local import train_alone
from commands.baseline.statistics import Statistics, noise_plan, ranked, statistics
from commands.baseline.untrained import untrained
from commands.baseline.world import World
from commands.progress import RunProgress
from commands.report import show_baseline
from fedrec.config.describe import to_yaml
from fedrec.config.schema import RunConfig
from fedrec.core.errors import ConfigError
from fedrec.core.strict_json import finite
from fedrec.data.store import write_store
from fedrec.evaluation.curves import write_curve
from fedrec.wire.protocol import SimulatedData
from server_app.ledger import Ledger
from server_app.manifest import manifest, new_run_id
from server_app.run_folder import CONFIG, MANIFEST, SUMMARY, RunFolder
from server_app.watching import Progress, Watcher

log = logging.getLogger("fedrec")

Kind = Literal["central", "local", "content", "popularity", "co_occurrence", "random"]


def baseline(kind: Kind, config: RunConfig, overrides: Sequence[str], *, console: Console) -> dict[str, Any]:
    """Carry out a baseline and return its summary, which is in its folder too; `config` has its folders settled.

    Raises FedrecError for whatever the user can mend.
    """
    torch.set_num_threads(1)  # as `train`
    if config.runtime == "deployment":
        raise ConfigError(["runtime=deployment: a baseline needs everybody's interactions in one place; leave it out"])
    if config.resume is not None:
        raise ConfigError([f"resume={config.resume}: a baseline is not resumed; leave it out, and start it again"])
    counted = kind == "co_occurrence" or (kind == "popularity" and config.privacy.name != "none")
    plan = noise_plan(kind, config) if counted else None  # what cannot be noised is refused before anything is done
    runs_dir = config.runs_dir
    assert runs_dir is not None
    run_id = config.run_id or f"{new_run_id(config)}-{kind}"
    config = dataclasses.replace(config, run_id=run_id)
    folder = RunFolder.new(runs_dir / run_id, resumable=False)
    with folder.logged("the baseline"), RunProgress(console) as progress:
        count = partial(statistics, kind, plan=plan) if counted else None
        summary = _carry_out(kind, config, overrides, folder, progress, count)
    show_baseline(summary, console)
    return summary


def _carry_out(
    kind: Kind,
    config: RunConfig,
    overrides: Sequence[str],
    folder: RunFolder,
    watcher: Watcher,
    count: Callable[..., tuple[Statistics, Ledger | None]] | None,
) -> dict[str, Any]:
    started = time.monotonic()
    cache_dir = config.cache_dir
    assert cache_dir is not None
    folder.write_text(CONFIG, to_yaml(config))
    world = World.read(config, cache_dir, watcher)
    store = write_store(world.dataset.interactions, cache_dir)
    place = SimulatedData(str(store), str(folder.state_dir), "")
    facts = manifest(config, overrides, world.dataset, world.table, place)
    folder.write_json(MANIFEST, {**facts, "baseline": kind})
    baselines = None  # before the training, so that nothing trained is lost if they cannot be computed
    if kind in ("central", "local") or count:
        wanted = config.evaluation.baselines
        baselines = untrained(world, "popularity", cache_dir, watcher).metrics["test"] if wanted else {}
    training = time.monotonic()
    if kind == "central":
        found = _central(world, folder, watcher)
    elif kind == "local":
        watcher.stage("every user alone")
        found = {"rounds": config.local.rounds, **train_alone(world, Progress(watcher))}
    elif count:
        found = _statistics(world, count, folder, watcher)
    else:
        found = _untrained(world, kind, cache_dir, watcher)
    seconds = time.monotonic() - training
    if kind != "central":  # which has a line for every epoch
        found.setdefault("validation", {})
        line = {"round": found["rounds"], "rounds": found["rounds"], "phase": kind, "validation": found["validation"]}
        folder.add_metrics({**line, "seconds": seconds})
    if baselines is not None:
        found["baselines"] = baselines
    with folder.kept_up():
        write_curve(folder.path)
    summary: dict[str, Any] = finite(
        {
            "run": str(folder.path),
            "baseline": kind,
            "seconds": time.monotonic() - started,
            "training_seconds": seconds,
            **found,
        }
    )
    folder.write_json(SUMMARY, summary)
    log.info("run folder: %s", folder.path)
    return summary


def _central(world: World, folder: RunFolder, watcher: Watcher) -> dict[str, Any]:
    watcher.stage("training centrally")

    def tell(record: dict[str, Any]) -> None:
        folder.add_metrics(record)
        watcher.update(record)

    trained = train_centrally(world, tell)
    slots = world.users.evaluated("test")
    own = {name: tensor[torch.from_numpy(slots)] for name, tensor in trained.private.items()}
    test = world.means(world.sums(trained.model, own, slots, "test", trained.epoch), "test")
    return {"rounds": trained.epochs, "best_round": trained.epoch, "test": test, "validation": trained.validation}


def _statistics(
    world: World, count: Callable[..., tuple[Statistics, Ledger | None]], folder: RunFolder, watcher: Watcher
) -> dict[str, Any]:
    watcher.stage("counting")
    found, ledger = count(world=world, folder=folder.path)
    account = {"privacy": ledger.report()} if ledger else {}
    return {"rounds": 0, **ranked(world, found), **account}


def _untrained(world: World, kind: Kind, cache_dir: Path, watcher: Watcher) -> dict[str, Any]:
    watcher.stage("baselines")
    member, metrics = untrained(world, kind, cache_dir, watcher)
    found: dict[str, Any] = {split: values[member] for split, values in metrics.items()}
    return {"rounds": 0, "member": member, **found, "baselines": metrics["test"]}
