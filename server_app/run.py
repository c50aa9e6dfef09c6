"""One run on the server: data, base table, the strategy's rounds, the test, and what is written down."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from flwr.serverapp import Grid

from federation.base import Deployed, FederatedStrategy
from federation.rival import Rival
from fedrec.config.describe import to_yaml
from fedrec.config.schema import RunConfig
from fedrec.core import registry
from fedrec.core.errors import DataError
from fedrec.core.registry import MemberConfig
from fedrec.core.rng import derive
from fedrec.core.secret import own_secret
from fedrec.core.shared_folder import leave_token
from fedrec.core.strict_json import finite
from fedrec.core.tensors import content_digest, text_digest
from fedrec.data import report
from fedrec.data.prepare import load, load_items
from fedrec.data.store import write_store
from fedrec.datasets.base import DatasetConfig
from fedrec.evaluation.curves import METRICS, write_curve
from fedrec.evaluation.over_groups import over_groups
from fedrec.wire.eligible import pack_eligible
from fedrec.wire.item_list import pack_item_list
from fedrec.wire.protocol import SimulatedData
from peft_embeddings.base_table import text_vectors
from server_app.account import ledger_of, planned, settled, stated
from server_app.baselines import best_of, simulated_baselines
from server_app.ceiling import ceiling, share_of_ceiling
from server_app.chosen import chosen
from server_app.manifest import manifest, new_run_id
from server_app.resuming import Resumption, go_on, manifest_of_resumed, prepare
from server_app.run_folder import CONFIG, MANIFEST, SETUP, SUMMARY, RunFolder
from server_app.setup import base_table, item_labels, make_setup, require_rankable, text_encoder, text_tensors
from server_app.standing import standing
from server_app.trackers.base import Tracking, tracked
from server_app.warnings import warnings_of
from server_app.watching import Progress, Recorder, Silent, Watcher, at_ten, shown

log = logging.getLogger("fedrec")


def run(
    config: RunConfig,
    overrides: Sequence[str],
    grid: Grid,
    watcher: Watcher | None = None,
    *,
    pause: int | None = None,
) -> dict[str, Any]:
    """Carry out a run and return its summary (also in the run folder as `summary.json`).

    `config` has its folders settled; if it names a run to resume, that run goes on in its own folder. With `pause` it
    stops after that round, which is validated, as one that can be resumed, and returns what its summary would have
    so far; validation must be on, and patience off. Raises FedrecError for whatever the user can mend.
    """
    runs_dir, cache_dir = config.runs_dir, config.cache_dir
    assert runs_dir is not None
    assert cache_dir is not None
    run_id = config.resume or config.run_id or new_run_id(config)
    config = dataclasses.replace(config, run_id=run_id)
    folder = (RunFolder.reopened if config.resume else RunFolder.new)(runs_dir / run_id)
    with folder.logged("the run"), folder.locked():
        resumption = prepare(folder) if config.resume else None
        # A part of a run that may be given up is followed by nobody; if it goes on, all of it is told.
        followed = config if pause is None else dataclasses.replace(config, tracker=MemberConfig("none"))
        with tracked(followed, folder.path, resumption.round if resumption else 0) as tracking:
            return _run(config, overrides, grid, folder, cache_dir, watcher or Silent(), resumption, pause, tracking)


def _run(
    config: RunConfig,
    overrides: Sequence[str],
    grid: Grid,
    folder: RunFolder,
    cache_dir: Path,
    watcher: Watcher,
    resumption: Resumption | None,
    pause: int | None,
    tracking: Tracking,
) -> dict[str, Any]:
    started = time.monotonic()
    if resumption is None:
        folder.write_text(CONFIG, to_yaml(config))
    watcher.stage(f"reading {config.dataset.name}")
    progress = Progress(watcher)
    simulated = config.runtime == "simulation"
    dataset = (load if simulated else load_items)(cast(DatasetConfig, config.dataset), progress)
    if simulated:
        require_rankable(dataset, validated=config.evaluation.validation)
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
        if simulated and config.evaluation.beyond_accuracy:
            folder.write_base_table(table.table.numpy())
    eligible = pack_eligible(dataset.eligible, len(dataset.catalogue))
    place, deployed, catalogue = None, None, dataset.catalogue.digest
    if simulated:
        store = write_store(dataset.interactions, cache_dir)
        place = SimulatedData(str(store), str(folder.state_dir), leave_token(folder.state_dir))
    else:
        listed = pack_item_list(dataset.catalogue.item_ids, dataset.catalogue.titles)
        # What a site can check is the list that it gets.
        deployed, catalogue = Deployed(own_secret(folder.path), listed), content_digest(listed)
    labels = item_labels(config, table.table)
    digests = (catalogue, content_digest(eligible))
    setup = make_setup(config, len(dataset.catalogue), *digests, place, content_digest(labels) if labels else "")
    if deployed is not None:
        setup = dataclasses.replace(setup, run_key=_run_key(str(config.run_id), folder, deployed, resumption))
    facts = manifest(config, overrides, dataset, table, place)
    if account := planned(config):
        facts["privacy"] = account
    if resumption is not None:
        if folder.read_json(SETUP).get("item_labels", "") != setup.item_labels:
            raise DataError(
                f"{folder.path}: the items have other labels here than where the run began, so that users would change "
                "their groups: resume it on a machine, and with versions, like those that its manifest names"
            )
        facts = manifest_of_resumed(folder, facts, resumption.round)
    folder.write_json(MANIFEST, facts)
    folder.write_public(setup, dataset.catalogue)
    if not config.evaluation.validation:
        log.info("evaluation.validation=false: users train on all but their last item, and only the test ranks them")
    baselines: dict[str, dict[str, float]] = {}
    rival: Rival | None = None
    most: dict[str, float] | None = None
    if config.evaluation.baselines and not simulated:
        log.info("no baselines: they need everybody's interactions in one place, which no deployment has")
    elif config.evaluation.baselines and pause is None:
        watcher.stage("baselines")
        vectors = None
        if config.base_table.start == "text":
            vectors = text_vectors(dataset.catalogue, text_encoder(config), cache_dir, progress)
        results = simulated_baselines(setup, dataset, vectors, "test")
        baselines, rival = results.means, best_of(results, setup, dataset)
        most = ceiling(config, dataset, setup.ks)
    recorder = Recorder(folder, watcher, config.checkpoints_kept, ledger, tracking)
    strategy: FederatedStrategy = registry.strategies.get(config.strategy.name)(
        config, setup, table.table, eligible, recorder, deployed, labels, text_tensors(config, dataset.catalogue)
    )
    strategy.rival, strategy.pause = rival, pause
    if resumption is not None:
        go_on(strategy, resumption, facts)
    watcher.stage("waiting for nodes")
    training = time.monotonic()
    strategy.start(grid)
    training_seconds = time.monotonic() - training
    best = strategy.choice.best
    so_far: dict[str, Any] = {
        "run": str(folder.path),
        "rounds": strategy.after,
        "best_round": strategy.after if best is None else best.round,
        "validation": strategy.ended.get("validation", {}) if best is None else dict(best.validation),
        "bytes_per_user": strategy.meter.per_user(),
    }
    if strategy.after == pause:
        return so_far
    with folder.kept_up():
        write_curve(folder.path)
    summary: dict[str, Any] = {
        **so_far,
        "chosen": chosen(strategy),
        "seconds": time.monotonic() - started,
        "training_seconds": training_seconds,
        "test": strategy.ended["test"],
        "baselines": baselines,
        "dropped_replies": strategy.ended["dropped_replies"],
        "warnings": warnings_of(folder.path / METRICS),
        "merges": strategy.models.merges,
        "embedding": {
            f"{group} {phase}".strip(): facts
            for group, reports in strategy.models.reports.items()
            for phase, facts in reports.items()
            if facts
        },
        **_by_group(strategy.ended),
        **({"simulated_seconds": strategy.clock} if strategy.timed else {}),
        **({"privacy": given} if (given := stated(config, ledger.report() if ledger else None)) else {}),
        **({"ceiling": most, "share": share_of_ceiling(strategy.ended["test"], most)} if most else {}),
        **standing(strategy),
    }
    summary = finite(summary)
    folder.write_json(SUMMARY, summary)
    tracking.summarize(summary)
    log.info("%s", summary["chosen"])
    log.info("test: %s", shown(at_ten(summary["test"])))
    if "share" in summary:
        log.info("%s", summary["share"])
    if ledger:
        log.info("privacy: epsilon=%(epsilon).3f at delta=%(delta)g (%(unit)s), %(releases)d releases", ledger.report())
    if "caveat" in summary.get("privacy", {}):
        log.warning("privacy=%s: %s", config.privacy.name, summary["privacy"]["caveat"])
    log.info("run folder: %s", folder.path)
    log.log(logging.INFO if summary["ahead"] is not False else logging.WARNING, "%s", summary["standing"])
    return summary


def _by_group(ended: Mapping[str, Any]) -> dict[str, Any]:
    """In a run with groups the metrics of each, and of the test their mean, the lowest and their spread."""
    if "groups" not in ended:
        return {}
    groups = ended["groups"]
    return {
        "groups": groups,
        "over_groups": over_groups({name: found["test"] for name, found in groups.items() if "test" in found}),
    }


def _run_key(run_id: str, folder: RunFolder, deployed: Deployed, resumption: Resumption | None) -> str:
    """The key under which sites keep what belongs to a run; it stays the same when the run goes on.

    Another server's run may have the same name, and so may one whose folder was removed since: the secret in the folder
    tells them apart.
    """
    before = {} if resumption is None else folder.read_json(SETUP)
    return str(before.get("run_key") or text_digest(f"{run_id} {derive(deployed.secret, 'run')}"))
