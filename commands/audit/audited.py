"""What all audits do around their runs: refuse what they cannot take, put data of their own into one, print it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fedrec.config.describe import load_member
from fedrec.config.paths import assign, key_of
from fedrec.config.schema import RunConfig
from fedrec.core.errors import ConfigError

Rule = tuple[str, object, object, str]
"""A key, its value, the only one that an audit takes, and why."""


def require(rules: Sequence[Rule], problems: Sequence[str] = ()) -> None:
    """Raise ConfigError with all rules that are broken, and with other problems of a configuration."""
    broken = [f"{key}={value}: {why}; leave it out" for key, value, only, why in rules if value != only]
    if broken or problems:
        raise ConfigError([*broken, *problems])


def of_statistics(config: RunConfig) -> list[str]:
    """Why a run whose users are asked for a statistic cannot be audited for items by what training moves."""
    counted = "an attack reads what training moves, and not what users say they have: without noise that is their items"
    found = []
    if config.statistics.start != "none":
        found.append(f"statistics.start={config.statistics.start}: {counted}; leave it out")
    if config.embedding.name == "popularity":
        found.append(f"embedding=popularity: {counted}; take another one")
    return found


def over_tables(
    config: RunConfig, overrides: Sequence[str], population: int, **dataset: object
) -> tuple[RunConfig, list[str]]:
    """A configuration with tables that an audit has written, ranked at its end alone, and the overrides that make it.

    Args:
        config: Of the run, on the data of whoever audits.
        overrides: What makes it.
        population: Users of the audited run, for a privacy mechanism that has to be told.
        dataset: Values of `dataset=table`.

    Raises ConfigError if the data are split by time, of which the tables have none.
    """
    by = getattr(config.dataset, "split", "leave_one_out")
    require([("dataset.split", by, "leave_one_out", "an audit writes tables of its own, without times")])
    given = {"text_columns": ["text"], **dataset}
    evaluation = dataclasses.replace(config.evaluation, every=0, baselines=False)
    config = dataclasses.replace(config, dataset=load_member("dataset", "table", **given), evaluation=evaluation)
    changes = {"dataset": "dataset=table"}
    for name, value in given.items():
        key = f"dataset.{name}"
        changes[key] = assign(key, value) if isinstance(value, Path) else f"{key}={_text(value)}"
    changes |= {"evaluation.every": "evaluation.every=0", "evaluation.baselines": "evaluation.baselines=false"}
    privacy: Any = config.privacy
    if getattr(privacy, "population", 0) is None:
        config = dataclasses.replace(config, privacy=dataclasses.replace(privacy, population=population))
        changes["privacy.population"] = f"privacy.population={population}"
    kept = [text for text in overrides if key_of(text).partition(".")[0] != "dataset" and key_of(text) not in changes]
    return config, [*kept, *changes.values()]


def _text(value: object) -> str:
    return f"[{','.join(value)}]" if isinstance(value, list) else str(value)


def show(lines: Sequence[str], found: Mapping[str, Any], console: Console) -> None:
    """Print what an audit has found: its own lines, then the run's warnings and folder."""
    for line in [*lines, *(f"warning: {warning}" for warning in found["warnings"]), f"run folder: {found['run']}"]:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
