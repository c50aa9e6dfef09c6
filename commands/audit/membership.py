"""`fedrec audit membership`: a run in which candidates take part by a coin each, and what its models tell of it.

Who looks is given much: every model that the server sends, the candidates' histories, and the draws that their devices
make. At each model it works out the update that a candidate would send, and how far the next model has gone along it;
what adds up over the run is the score, as for the canaries of Andrew et al. (ICLR 2024), of which the guesses about
the coins are made (`commands.audit.one_run`). Beside it stands who has the last model alone, and scores by the loss of
a candidate's history. Private tensors of other rounds are not known: they are as at the start.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console

from commands.audit.audited import over_tables, require, show
from commands.audit.candidates import candidates
from commands.audit.one_run import CONFIDENCE, auc, lower_bound
from commands.audit.tables import write_interactions, write_items
from commands.audit.watching import WatchedGrid
from commands.kept_run import of_run
from commands.progress import RunProgress
from fedrec.config.schema import RunConfig
from fedrec.core import registry
from fedrec.core.errors import ConfigError
from fedrec.data.prepare import load
from fedrec.datasets.base import DatasetConfig
from fedrec.privacy.central import Central
from server_app.run import run

LEAST = 10
"""Candidates: of fewer, not even guesses that are all right show anything."""

_DELTA = 1e-5
"""Of the bound where the run has none of its own."""


def membership(
    config: RunConfig, overrides: Sequence[str], count: int, *, canaries: bool, console: Console
) -> dict[str, Any]:
    """Carry out a run with candidates and say what is shown of its epsilon; `config` has its folders settled.

    Args:
        config: Of the run. Its test is not validated on the way, and has no baselines.
        overrides: What makes the same configuration.
        count: Candidates.
        canaries: Whether they are made up, or users of the data.
        console: Where progress is shown.

    Returns:
        Of both who look, `all_models` and `last_model`: the area under the ROC curve, and the bound of epsilon with the
        guesses it is made of (both bounds together at the confidence); the account's epsilon, if there is one, and
        whether it holds: None without one.

    Raises FedrecError for whatever the user can mend.
    """
    torch.set_num_threads(1)  # as `train`
    _require_audited(config, count)
    dataset = load(cast(DatasetConfig, config.dataset), lambda *_: None)
    chosen = candidates(dataset, count, config.seed, canaries=canaries)
    if chosen.took_part.all() or not chosen.took_part.any():
        raise ConfigError([f"--candidates {count}: with seed={config.seed} all coins fall alike; give another number"])
    with tempfile.TemporaryDirectory(prefix="fedrec-audit-") as place:
        folder = Path(place)
        write_items(dataset.catalogue, folder / "items.csv")
        write_interactions(dataset.catalogue, chosen.run, folder / "interactions.csv")
        config, overrides = over_tables(
            config,
            overrides,
            dataset.interactions.users + count * canaries,
            interactions=folder / "interactions.csv",
            item_table=folder / "items.csv",
            items="listed",  # a list of rated items would tell who is there, beside the account
        )
        grid = WatchedGrid(config, chosen)
        with RunProgress(console) as progress, progress.warnings():
            summary = run(config, overrides, grid, progress)
    watcher, last = grid.watcher, of_run(Path(summary["run"])).model_of(0)
    watcher.see(last)
    account: Mapping[str, Any] = summary.get("privacy", {})
    delta = float(account.get("delta", _DELTA))
    looks = {"all_models": watcher.along, "last_model": watcher.fit(last)}
    bounds = {name: lower_bound(score, chosen.took_part, delta, len(looks)) for name, score in looks.items()}
    promised = account.get("epsilon")
    return {
        "run": summary["run"],
        "candidates": count,
        "canaries": canaries,
        "took_part": int(chosen.took_part.sum()),
        "confidence": CONFIDENCE,
        "delta": delta,
        **{name: {"auc": auc(score, chosen.took_part), **bounds[name]._asdict()} for name, score in looks.items()},
        "account": promised,
        "holds": None if promised is None else all(bound.epsilon <= promised for bound in bounds.values()),
        "test": summary["test"],
        "warnings": summary["warnings"],
    }


def show_membership(found: Mapping[str, Any], console: Console) -> None:
    """Print what `membership` has found in words."""
    kind = "canaries" if found["canaries"] else "users of the data"
    lines = [f"{found['candidates']:,} candidates, {kind}, of whom {found['took_part']:,} took part"]
    for name, who in (("all_models", "all models of the run"), ("last_model", "the last model")):
        look = found[name]
        shown = (
            f"{look['right']} of {look['guesses']} guesses right: epsilon is at least {look['epsilon']:.2f} "
            f"({found['confidence']:.0%} confidence, delta={found['delta']:g})"
            if look["guesses"]
            else "too few candidates, or too little to tell them by, for a bound of epsilon"
        )
        lines.append(f"who has {who} tells them apart with an AUC of {look['auc']:.3f}; {shown}")
    if found["holds"] is None:
        lines.append("the run keeps no account of privacy")
    elif found["holds"]:
        lines.append(f"the account says {found['account']:.2f}, which is not less than what was shown")
    else:
        lines.append(
            f"warning: the account says {found['account']:.2f}, which is less than was shown: please report it"
        )
    show(lines, found, console)


def _require_audited(config: RunConfig, count: int) -> None:
    """Raise ConfigError for a configuration that cannot be audited so."""
    privacy: Any = config.privacy
    made = registry.privacies.get(privacy.name)(privacy)
    problems = []
    if hasattr(privacy, "epsilon") and not isinstance(made, Central):
        problems.append(
            f"privacy={privacy.name}: its account is not of adding or removing a user, which is what candidates do; "
            "take privacy=central_gaussian, central_laplace, or one without an account"
        )
    if count < LEAST:
        problems.append(f"--candidates {count}: guesses about so few coins show nothing; give at least {LEAST}")
    require(
        (
            ("runtime", config.runtime, "simulation", "an audit simulates all users"),
            ("grouping", config.grouping.name, "one", "candidates have no group"),
            ("resume", config.resume, None, "an audit is a run of its own"),
        ),
        problems,
    )
