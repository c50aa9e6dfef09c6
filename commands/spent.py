"""`fedrec spent`: what a site's users have spent of their privacy, by the ledgers in its state-dir."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from client_app.homes.budget import reported
from client_app.homes.training_budget import trained
from fedrec.core.errors import ConfigError, FedrecError


def spent(state_dir: Path, delta: float) -> dict[str, Any]:
    """What was spent, as plain data for JSON.

    Args:
        state_dir: Of the site.
        delta: At which the epsilon of training is told.

    Raises FedrecError if there is no such folder, or a ledger in it is damaged.
    """
    if not 0 < delta < 1:
        raise ConfigError(
            [f"--delta {delta:g}: expected a number between 0 and 1, well below one in the number of users"]
        )
    if not state_dir.is_dir():
        raise FedrecError(f"--state-dir {state_dir}: there is no such folder; give the state-dir of the SuperNode")
    reports = reported(state_dir)
    users, releases, largest = trained(state_dir, delta)
    return {
        "state_dir": str(state_dir),
        "reports": {"number": len(reports), "epsilon": sum(reports.values())},
        "training": {"users": users, "most_releases": releases, "epsilon": largest, "delta": delta},
    }


def show_spent(found: Mapping[str, Any], console: Console) -> None:
    """Print it in words."""
    reports, training = found["reports"], found["training"]
    lines = [
        f"reports of items: {reports['number']:,} that differ, epsilon {reports['epsilon']:g} for every user",
        f"training with noise: {training['users']:,} users, at most {training['most_releases']:,} updates of one; "
        f"the largest epsilon of a user is {training['epsilon']:.4g} at delta {training['delta']:g}",
        "they add up; not counted: updates without noise, the metrics of rankings",
    ]
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
