"""One run on the server: data, base table, the strategy's rounds, the test, and what is written down."""

from __future__ import annotations

import dataclasses
import logging
import platform
import secrets
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from flwr.serverapp import Grid

from federation.base import Deployed, FederatedStrategy
from federation.checkpoint import Checkpoint
from fedrec import __version__
from fedrec.config.describe import to_yaml
from fedrec.config.schema import RunConfig
from fedrec.core import registry
from fedrec.core.rng import derive
from fedrec.core.secret import own_secret
from fedrec.core.shared_folder import leave_token
from fedrec.core.strict_json import finite
from fedrec.core.tensors import content_digest, text_digest
from fedrec.data import report
from fedrec.data.prepare import load, load_items
from fedrec.data.store import write_store
from fedrec.data.types import DataReport, Dataset
from fedrec.datasets.base import DatasetConfig
from fedrec.evaluation.curves import METRICS, write_curve
from fedrec.stages.base import Release
from fedrec.wire.code import code_digest
from fedrec.wire.item_list import pack_item_list
from fedrec.wire.protocol import (
    PROTOCOL_VERSION,
    PhaseSetup,
    Setup,
    SimulatedData,
    pack_eligible,
)
from peft_embeddings.base_table import BaseTable, build_base_table, random_base_table, text_vectors
from peft_embeddings.encoders.base import TextEncoder
from server_app.account import ledger_of, settled
from server_app.baselines import simulated_baselines
from server_app.ledger import Ledger
from server_app.resuming import Resumption, go_on, manifest_of_resumed, prepare
from server_app.run_folder import CONFIG, MANIFEST, SETUP, SUMMARY, RunFolder
from server_app.warnings import Warnings, warnings_of

log = logging.getLogger("fedrec")

_LOG_EVERY = 10.0
"""Seconds between two lines in the log about the same long work."""


class Watcher(Protocol):
    """Shows a run to a person while it goes on."""

    def stage(self, text: str) -> None:
        """What happens now, before the first round or after the last."""

    def work(self, what: str, done: int, total: int) -> None:
        """How far something long has come."""

    def data(self, report: DataReport, name: str) -> None:
        """The size of the data, before and after its preparation."""

    def update(self, record: dict[str, Any]) -> None:
        """A round has ended."""


class _Silent:
    def stage(self, text: str) -> None:
        pass

    def work(self, what: str, done: int, total: int) -> None:
        pass

    def data(self, report: DataReport, name: str) -> None:
        pass

    def update(self, record: dict[str, Any]) -> None:
        pass


class Progress:
    """Tells the watcher how far something long has come, and the log now and then."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._logged = time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        """`done` of `total` are done."""
        self._watcher.work(what, done, total)
        if done >= total or time.monotonic() - self._logged >= _LOG_EVERY:
            self._logged = time.monotonic()
            log.info("%s: %d of %d", what, done, total)


class _Recorder:
    """The strategy's observer: metrics and checkpoints into the run folder, rounds to the watcher and the log."""

    def __init__(self, folder: RunFolder, watcher: Watcher, checkpoints_kept: int, ledger: Ledger | None) -> None:
        self._folder = folder
        self._ledger = ledger
        self._checkpoints_kept = checkpoints_kept
        self._watcher = watcher
        self._warnings = Warnings()

    def on_release(self, round: int, releases: Sequence[Release]) -> None:
        if self._ledger is not None:
            self._ledger.spend(round, releases)

    def on_round(self, record: dict[str, Any]) -> None:
        if self._ledger is not None and ("validation" in record or record["round"] == record["rounds"]):
            record["privacy"] = self._ledger.report(after=record["round"])
        record = finite(record)
        self._folder.add_metrics(record)
        self._watcher.update(record)
        number = f"{record['round']}/{record['rounds']}"
        loss = {"loss": record["loss"]} if "loss" in record else {}
        log.info("round %s %s %s", number, record["phase"], _shown({**loss, **_at_ten(record.get("validation", {}))}))
        for line in self._warnings.add(record):
            log.warning("%s", line)

    def on_checkpoint(self, checkpoint: Checkpoint) -> None:
        self._folder.write_checkpoint(checkpoint, self._checkpoints_kept)


def _at_ten(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if "@10" in name}


def _shown(values: Mapping[str, float | None]) -> str:
    return " ".join(f"{name}={'-' if value is None else f'{value:.4f}'}" for name, value in values.items())


def new_run_id(config: RunConfig) -> str:
    """A name for a run's folder: when it started, what it trains, and four letters against collisions."""
    what = f"{config.strategy.name}-{config.embedding.name}-{config.backbone.name}-{config.dataset.name}"
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{what}-{secrets.token_hex(2)}"


def run(config: RunConfig, overrides: Sequence[str], grid: Grid, watcher: Watcher | None = None) -> dict[str, Any]:
    """Carry out a run and return its summary (also in the run folder as `summary.json`).

    `config` has its folders settled; if it names a run to resume, that run goes on in its own folder. Raises
    FedrecError for whatever the user can mend.
    """
    runs_dir, cache_dir = config.runs_dir, config.cache_dir
    assert runs_dir is not None
    assert cache_dir is not None
    run_id = config.resume or config.run_id or new_run_id(config)
    config = dataclasses.replace(config, run_id=run_id)
    folder = (RunFolder.reopened if config.resume else RunFolder.new)(runs_dir / run_id)
    with folder.logged("the run"), folder.locked():
        resumption = prepare(folder) if config.resume else None
        return _run(config, overrides, grid, folder, cache_dir, watcher or _Silent(), resumption)


def _run(
    config: RunConfig,
    overrides: Sequence[str],
    grid: Grid,
    folder: RunFolder,
    cache_dir: Path,
    watcher: Watcher,
    resumption: Resumption | None,
) -> dict[str, Any]:
    started = time.monotonic()
    if resumption is None:
        folder.write_text(CONFIG, to_yaml(config))
    watcher.stage(f"reading {config.dataset.name}")
    progress = Progress(watcher)
    simulated = config.runtime == "simulation"
    dataset = (load if simulated else load_items)(cast(DatasetConfig, config.dataset), progress)
    if simulated:
        watcher.data(dataset.report, dataset.name)
    config = settled(config, dataset.interactions.users)
    if resumption is None:
        folder.write_text(CONFIG, to_yaml(config))
    ledger = ledger_of(config, folder.path)
    for line in report.as_lines(dataset.report):
        log.info("%s", line)
    watcher.stage("base table from item text")
    table = base_table(config, dataset, cache_dir, progress)
    if table.text_map is not None:
        with folder.kept_up():
            table.text_map.save(folder.path)
    eligible = pack_eligible(dataset.eligible, len(dataset.catalogue))
    place, deployed, catalogue = None, None, dataset.catalogue.digest
    if simulated:
        store = write_store(dataset.interactions, cache_dir)
        place = SimulatedData(str(store), str(folder.state_dir), leave_token(folder.state_dir))
    else:
        listed = pack_item_list(dataset.catalogue.item_ids, dataset.catalogue.titles)
        # What a site can check is the list that it gets.
        deployed, catalogue = Deployed(own_secret(folder.path), listed), content_digest(listed)
    setup = make_setup(config, len(dataset.catalogue), catalogue, content_digest(eligible), place)
    if deployed is not None:
        setup = dataclasses.replace(setup, run_key=_run_key(str(config.run_id), folder, deployed, resumption))
    facts = manifest(config, overrides, dataset, table, place)
    if resumption is not None:
        facts = manifest_of_resumed(folder, facts, resumption.round)
    folder.write_json(MANIFEST, facts)
    folder.write_public(setup, dataset.catalogue)
    if not config.evaluation.validation:
        log.info("evaluation.validation=false: users train on all but their last item, and only the test ranks them")
    baselines = {}
    if config.evaluation.baselines and not simulated:
        log.info("no baselines: they need everybody's interactions in one place, which no deployment has")
    elif config.evaluation.baselines:
        watcher.stage("baselines")
        vectors = None
        if config.base_table.start == "text":
            vectors = text_vectors(dataset.catalogue, text_encoder(config), cache_dir, progress)
        baselines = simulated_baselines(setup, dataset, vectors, "test")
    strategy: FederatedStrategy = registry.strategies.get(config.strategy.name)(
        config, setup, table.table, eligible, _Recorder(folder, watcher, config.checkpoints_kept, ledger), deployed
    )
    if resumption is not None:
        go_on(strategy, resumption, facts)
    watcher.stage("waiting for nodes")
    training = time.monotonic()
    strategy.start(grid)
    training_seconds = time.monotonic() - training
    with folder.kept_up():
        write_curve(folder.path)
    summary: dict[str, Any] = {
        "run": str(folder.path),
        "rounds": strategy.config.rounds,
        "seconds": time.monotonic() - started,
        "training_seconds": training_seconds,
        "test": strategy.ended["test"],
        "validation": strategy.ended.get("validation", {}),
        "baselines": baselines,
        "dropped_replies": strategy.ended["dropped_replies"],
        "warnings": warnings_of(folder.path / METRICS),
        "merges": strategy.state.merges.count,
        "embedding": {phase: facts for phase, facts in strategy.model.reports.items() if facts},
        "bytes_per_user": strategy.meter.per_user(),
        **({"privacy": ledger.report()} if ledger else {}),
    }
    summary = finite(summary)
    folder.write_json(SUMMARY, summary)
    log.info("test: %s", _shown(_at_ten(summary["test"])))
    if ledger:
        log.info("privacy: epsilon=%(epsilon).3f at delta=%(delta)g (%(unit)s), %(releases)d releases", ledger.report())
    log.info("run folder: %s", folder.path)
    return summary


def _run_key(run_id: str, folder: RunFolder, deployed: Deployed, resumption: Resumption | None) -> str:
    """The key under which sites keep what belongs to a run; it stays the same when the run goes on.

    Another server's run may have the same name, and so may one whose folder was removed since: the secret in the folder
    tells them apart.
    """
    before = {} if resumption is None else folder.read_json(SETUP)
    return str(before.get("run_key") or text_digest(f"{run_id} {derive(deployed.secret, 'run')}"))


def text_encoder(config: RunConfig) -> TextEncoder:
    """The encoder of item texts that the configuration names."""
    made: TextEncoder = registry.encoders.get(config.encoder.name)(config.encoder)
    return made


def base_table(config: RunConfig, dataset: Dataset, cache_dir: Path, progress: Progress) -> BaseTable:
    """The pre-trained item table that the configuration asks for."""
    start = config.base_table
    if start.start == "random":
        return random_base_table(len(dataset.catalogue), start.dim, start.norm, config.seed)
    table = build_base_table(
        dataset.catalogue,
        text_encoder(config),
        registry.reductions.get(config.reduction.name)(config.reduction),
        start.dim,
        start.norm,
        config.seed,
        cache_dir,
        progress,
    )
    log.info("base table: %d x %d, %d items without text", *table.table.shape, table.items_without_text)
    return table


def make_setup(
    config: RunConfig, n_items: int, catalogue: str, eligible: str, simulation: SimulatedData | None
) -> Setup:
    """What every client is told about a run.

    Args:
        config: The whole configuration.
        n_items: Rows of the catalogue.
        catalogue: The catalogue's digest.
        eligible: The digest of the list of eligible items, as it is sent.
        simulation: Where a simulated node finds its users' data.
    """
    strategy: Any = config.strategy
    phases = registry.strategies.get(strategy.name).phases(config)
    return Setup(
        protocol=PROTOCOL_VERSION,
        run_key=text_digest(str(config.run_id)),
        seed=config.seed,
        n_items=n_items,
        dim=config.base_table.dim,
        catalogue=catalogue,
        eligible=eligible,
        phases=tuple(PhaseSetup(phase.name, dataclasses.asdict(phase.embedding)) for phase in phases),
        backbone=config.backbone.told(),
        optim=config.optim.told(),
        codec=dataclasses.asdict(config.codec),
        privacy=dataclasses.asdict(config.privacy),
        ks=config.evaluation.ks,
        sampled_negatives=config.evaluation.sampled_negatives,
        validation=config.evaluation.validation,
        weight_cap=config.federation.weight_cap,
        max_update_norm=config.federation.max_update_norm,
        engine=config.engine,
        pairs_at_once=config.pairs_at_once,
        simulation=simulation,
    )


def manifest(
    config: RunConfig, overrides: Sequence[str], dataset: Dataset, table: BaseTable, place: SimulatedData | None
) -> dict[str, Any]:
    """What a reader needs to know whether two runs can be compared, and to make one again."""
    packages = ("flwr", "torch", "numpy", "scikit-learn")
    return {
        "fedrec": __version__,
        "code": code_digest(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "threads": torch.get_num_threads(),
        "overrides": list(overrides),
        "seed": config.seed,
        "data": {
            "name": dataset.name,
            "catalogue": dataset.catalogue.digest,
            "interactions": Path(place.interactions).name if place else None,
            "eligible": len(dataset.eligible),
            "validation": config.evaluation.validation,
            **report.as_dict(dataset.report),
        },
        "base_table": {
            "digest": table.digest,
            "reconstruction_mse": table.reconstruction_mse,
            "items_without_text": table.items_without_text,
        },
    }
