"""`fedrec audit promotion`: a run with users among it who push one item, and how many of the others are shown it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from client_app.answers.app import app as client_app
from client_app.answers.evaluation import RankingProtocol, rank_users
from commands.audit.attacks import ATTACKS, FITTING
from commands.audit.audited import require, show
from commands.audit.crowd import Crowd, CrowdedGrid
from commands.kept_run import of_run
from commands.progress import RunProgress
from fedrec.config.schema import RunConfig
from fedrec.core import registry
from fedrec.core.rng import derive
from fedrec.data.prepare import load
from fedrec.data.types import Dataset
from fedrec.datasets.base import DatasetConfig
from server_app.run import run

_LIST = 10
_RARE = 0.25
"""The target is drawn among this share of the items: those that fewest users have."""


def promotion(
    config: RunConfig, overrides: Sequence[str], attack: str, share: float, *, console: Console
) -> dict[str, Any]:
    """Carry out a run with attackers and say what they reached; `config` has its folders settled.

    Args:
        config: Of the run, which has the honest users of its data set.
        overrides: What makes the same configuration.
        attack: A name of `commands.audit.attacks.ATTACKS`.
        share: Attackers, as a share of the honest users (0: none).
        console: Where progress is shown.

    Returns:
        `er@10`: of the honest users who do not have the target, the share whose first ten items have it. Beside it the
        test metrics of the honest users, the target, the attackers, and what was left out.

    Raises FedrecError for whatever the user can mend.
    """
    torch.set_num_threads(1)  # as `train`
    problems = []
    if attack in FITTING and registry.backbones.get(config.backbone.name).causal:
        problems.append(
            f"backbone={config.backbone.name}: the attack {attack} fits vectors of users whose interactions are "
            "public, and this backbone keeps none; choose another of "
            f"{', '.join(name for name in ATTACKS if name not in FITTING)}, or a backbone with users' vectors"
        )
    require(
        (
            ("runtime", config.runtime, "simulation", "an audit simulates all users, attackers and others"),
            ("uplink", config.uplink.name, "dense", "the attackers send whole tables"),
            ("grouping", config.grouping.name, "one", "the attackers have no group"),
            ("resume", config.resume, None, "an audit is a run of its own"),
        ),
        problems,
    )
    dataset = load(cast(DatasetConfig, config.dataset), lambda *_: None)
    target = rare_item(dataset, config.seed)
    attackers = max(1, round(share * dataset.interactions.users)) if share else 0
    crowd = Crowd(attackers, ATTACKS[attack], target)
    with RunProgress(console) as progress, progress.warnings():
        summary = run(config, overrides, CrowdedGrid(client_app, config.simulation.nodes, crowd), progress)
    shown, users = exposure(Path(summary["run"]), target)
    return {
        "run": summary["run"],
        "attack": attack,
        "attackers": attackers,
        "updates_of_attackers": crowd.sent,
        "target": dataset.catalogue.item_ids[target],
        "users_without_target": users,
        "er@10": shown,
        "test": summary["test"],
        "dropped_replies": summary["dropped_replies"],
        "warnings": summary["warnings"],
    }


def show_promotion(found: Mapping[str, Any], console: Console) -> None:
    """Print what `promotion` has found in words."""
    lines = [
        f"{found['attackers']:,} attackers ({found['attack']}) sent {found['updates_of_attackers']:,} updates for item "
        f"{found['target']}",
        f"ER@{_LIST} {found[f'er@{_LIST}']:.4f}: so many of {found['users_without_target']:,} users are shown it",
        f"NDCG@10 of the honest users' test: {found['test'].get('ndcg@10', float('nan')):.4f}",
    ]
    show(lines, found, console)


def rare_item(dataset: Dataset, seed: int) -> int:
    """The row of an item that is drawn among those that few users have."""
    counts = np.bincount(dataset.interactions.items, minlength=len(dataset.catalogue))[dataset.eligible]
    rare = dataset.eligible[np.argsort(counts, kind="stable")[: max(1, int(_RARE * len(counts)))]]
    return int(rare[derive(seed, "audit", "target") % len(rare)])


def exposure(folder: Path, target: int) -> tuple[float, int]:
    """The share of a finished run's users without an item who are shown it among their first ten, and their number."""
    source = of_run(folder)
    node, received = source.node, source.model_of(0)
    everybody = np.arange(len(node.users))
    whole = node.users.whole(everybody)
    slots: NDArray[np.int64] = np.setdiff1d(everybody, np.repeat(everybody, whole.lengths)[whole.items == target])
    cohort = node.users.training(slots)
    private, _ = node.private(cohort.keys, received.round + 1)
    if node.recipe.private_anew:
        private |= node.backbone.init_private(node.setup.seed, cohort.keys)
    private = node.engine.solve(received.model, cohort, private, derive(node.secret, "solve", "audit", received.round))
    protocol = RankingProtocol((_LIST,), node.sampler, 0, 0)
    sums = rank_users(received.model.cpu(), cohort, np.full(len(slots), target), private, protocol)
    return sums[f"hr@{_LIST}"] / len(slots), len(slots)
