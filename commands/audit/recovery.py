"""`fedrec audit recovery`: what a server that only looks learns of users who are alone on their nodes: their items.

The run is a deployment in one process, with the real server: some users, drawn at random, have a node each, as phones
have, and all others share one. `commands.audit.curious` reads the messages of the lone users' nodes as they pass. What
it believes is compared with the items that they train on.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from client_app.answers.app import app as client_app
from commands.audit.audited import of_statistics, over_tables, require, show
from commands.audit.curious import CuriousGrid, Seen
from commands.audit.one_run import auc
from commands.audit.tables import write_interactions, write_items
from commands.progress import RunProgress
from fedrec.config.paths import key_of
from fedrec.config.schema import RunConfig
from fedrec.core.errors import ConfigError, FederationError
from fedrec.data import split
from fedrec.data.prepare import load
from fedrec.data.types import Dataset
from fedrec.datasets.base import DatasetConfig
from server_app.run import run
from server_app.watching import Watcher

LAST = 10
"""How many of a user's last training items the columns of the last items are about."""


def recovery(config: RunConfig, overrides: Sequence[str], lone: int, *, console: Console) -> dict[str, Any]:
    """Carry out a run with lone users and say what of theirs the server recovers; `config` has its folders settled.

    Args:
        config: Of the run, which becomes a deployment of the users of its data set. It is ranked at its end alone.
        overrides: What makes the same configuration.
        lone: How many users are alone.
        console: Where progress is shown.

    Returns:
        The figures of `compared`, and beside them those of `by_popularity`, and the test of the run.

    Raises FedrecError for whatever the user can mend.
    """
    torch.set_num_threads(1)  # as `train`
    _require_audited(config)
    dataset = load(cast(DatasetConfig, config.dataset), lambda *_: None)
    if not 0 < lone < (most := int(split.evaluated(dataset.interactions, of="test").sum())):
        raise ConfigError([f"--users {lone}: the data have {most} users with something to train on; give fewer"])
    with tempfile.TemporaryDirectory(prefix="fedrec-audit-") as place:
        share = share_out(dataset, lone, Path(place))
        config, overrides = over_tables(config, overrides, dataset.interactions.users, item_table=share.items)
        config = dataclasses.replace(config, runtime="deployment")
        overrides = [*(text for text in overrides if key_of(text) != "runtime"), "runtime=deployment"]
        with RunProgress(console) as progress, progress.warnings():
            summary, found = looked_at(config, overrides, share, progress)
    return {
        "run": summary["run"],
        "lone_users": lone,
        **found,
        "popularity": by_popularity(dataset, share.histories),
        "test": summary["test"],
        "warnings": summary["warnings"],
    }


def show_recovery(found: Mapping[str, Any], console: Console) -> None:
    """Print what `recovery` has found in words."""
    lines = [
        f"{found['users']:,} of {found['lone_users']:,} lone users trained, {found['updates']:.1f} times each, on "
        f"{found['history_length']:.1f} items",
        *(
            f"{title}: AUC {figures['history_auc']:.2f}, precision {figures['history_precision']:.2f}; of the last "
            f"{LAST} items AUC {figures['last_auc']:.2f}, precision {figures['last_precision']:.2f}"
            for title, figures in (
                ("from one update", found["one_update"]),
                ("from the whole run", found["whole_run"]),
                ("from popularity alone", found["popularity"]),
            )
        ),
    ]
    show(lines, found, console)


def _require_audited(config: RunConfig) -> None:
    """Raise ConfigError for a configuration that cannot be audited so."""
    by = getattr(config.dataset, "split", "leave_one_out")
    require(
        (
            ("runtime", config.runtime, "simulation", "an audit shares the users of a data set out by itself"),
            ("grouping", config.grouping.name, "one", "the attack reads the model that all share"),
            ("downlink", config.downlink.name, "dense", "the attack reads each update beside the model that it is of"),
            ("resume", config.resume, None, "an audit is a run of its own"),
            ("dataset.split", by, "leave_one_out", "an audit writes tables of its own, without times"),
        ),
        of_statistics(config),
    )


def looked_at(
    config: RunConfig, overrides: Sequence[str], share: Share, watcher: Watcher | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Carry out a deployment of shared data while the server looks: its summary, and the figures of `compared`."""
    grid = CuriousGrid(client_app, share.nodes, len(share.histories))
    summary = run(config, overrides, grid, watcher)
    return summary, compared(grid.seen, share.histories)


class Share(NamedTuple):
    """A data set shared out to nodes, as a deployment finds it: paths, and what is true of the lone users.

    Attributes:
        items: The item table.
        nodes: Node configurations, those of lone users first.
        histories: The lone users' training items, oldest first, as rows of the item table.
    """

    items: Path
    nodes: list[dict[str, str]]
    histories: list[NDArray[np.int64]]


def share_out(dataset: Dataset, lone: int, folder: Path) -> Share:
    """Write the files of `lone` users drawn at random, one each, and of all others together."""
    interactions, catalogue = dataset.interactions, dataset.catalogue
    items = folder / "items.csv"
    write_items(catalogue, items)
    trainable = np.flatnonzero(split.evaluated(interactions, of="test"))
    alone = np.sort(np.random.default_rng(0).permutation(trainable)[:lone])
    rest = np.setdiff1d(np.arange(interactions.users), alone)
    nodes = []
    for number, users in enumerate([*np.split(alone, lone), rest]):
        path = folder / f"node-{number}" / "interactions.csv"
        path.parent.mkdir()
        write_interactions(catalogue, interactions, path, users)
        nodes.append({"interactions": str(path), "state-dir": str(path.parent / "state")})
    known = split.histories(interactions, "train", alone)
    histories = [known.items[start:end].astype(np.int64) for start, end in pairwise(known.offsets)]
    return Share(items, nodes, histories)


def compared(seen: Sequence[Seen], histories: Sequence[NDArray[np.int64]]) -> dict[str, Any]:
    """Means over the lone users who trained. Raises FederationError if none did.

    `history` is about all items that a user trains on, `last` about the latest ten of them, without the earlier ones.
    Each has the area under the ROC curve, and the precision among as many of the highest scores: of the history as
    many as its updates say that there are (so that it is the recall as well).
    """
    pairs = [(one, history) for one, history in zip(seen, histories, strict=True) if one.scores]
    if not pairs:
        raise FederationError(
            f"none of {len(histories)} lone users was chosen in any round: give more of them (--users), more rounds "
            "(strategy.rounds) or a larger federation.fraction"
        )
    last_phase = max(max(one.phases) for one, _ in pairs)
    late = [(one, history) for one, history in pairs if last_phase in one.phases]
    figures = {
        "users": len(pairs),
        "updates": float(np.mean([len(one.scores) for one, _ in pairs])),
        "history_length": float(np.mean([len(history) for _, history in pairs])),
        "one_update": _means([(one.score([last_phase], 1), one.examples, history) for one, history in late]),
        "last_phase": _means([(one.score([last_phase]), one.examples, history) for one, history in late]),
        "whole_run": _means([(one.score(), one.examples, history) for one, history in pairs]),
    }
    always = [(one.always(), history) for one, history in pairs]
    hits = [(mask[history].sum(), mask.sum(), len(history)) for mask, history in always]
    figures["in_every_update"] = {
        "precision": float(np.mean([right / named if named else 0.0 for right, named, _ in hits])),
        "recall": float(np.mean([right / true for right, _, true in hits])),
    }
    return figures


def _means(cases: Sequence[tuple[NDArray[np.float64], int, NDArray[np.int64]]]) -> dict[str, float]:
    """Over scores of items, the number of items that the updates name (0: they name none), and the true history."""
    rng = np.random.default_rng(0)
    figures: list[tuple[float, float, float, float]] = []
    for score, examples, history in cases:
        order = rng.permutation(len(score))  # ties are drawn, not given to those who stand first
        ranked = order[np.argsort(-score[order], kind="stable")]
        mine = np.zeros(len(score), np.bool_)
        mine[history] = True
        recent = np.zeros(len(score), np.bool_)
        recent[history[-LAST:]] = True
        either = recent | ~mine
        figures.append(
            (
                auc(score, mine),
                float(mine[ranked[: examples or len(history)]].mean()),
                auc(score[either], recent[either]),
                float(recent[ranked[:LAST]].mean()),
            )
        )
    names = ("history_auc", "history_precision", "last_auc", "last_precision")
    return dict(zip(names, map(float, np.mean(figures, axis=0)), strict=True))


def by_popularity(dataset: Dataset, histories: Sequence[NDArray[np.int64]]) -> dict[str, float]:
    """What somebody recovers of these histories who knows nothing but how many users have each item."""
    counts = np.bincount(dataset.interactions.items, minlength=len(dataset.catalogue)).astype(np.float64)
    return _means([(counts, len(history), history) for history in histories])
