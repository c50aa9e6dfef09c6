"""The candidates of `fedrec tune`: what each of them is, and what may be one."""

from __future__ import annotations

import dataclasses
import math
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commands.describe import describe
from federation.sizes import Sizes, expected
from fedrec.config.compose import EXPERIMENT, compose, experiments
from fedrec.config.paths import key_of, portable, settle
from fedrec.config.schema import RunConfig
from fedrec.core.errors import ConfigError
from fedrec.core.registry import nearest
from server_app.account import accounts

PARTS = 16
"""A run is validated so many times, and may be tried for so many parts of it."""
_PATIENCE = 8
"""Of an experiment that has any: so much that none would end in the half of a run for which it is tried at most."""


@dataclass
class Candidate:
    """An experiment that is tried.

    Attributes:
        name: Of the experiment.
        typed: The overrides that make its configuration.
        config: That configuration, with its folders settled; the run is in a folder of the search's until it is chosen.
        place: Where the run's folder belongs then.
        sizes: What its run would move.
        shows_data: Whether a person is shown the data with it, which are those of all.
        round: The round until which it was trained.
        value: Its best validation until then.
        moved: Bytes per user until then, as the meter counted them.
        evaluation: What its validations have moved beside that.
        failed: Why its run could not go on; empty if it could.
    """

    name: str
    typed: list[str]
    config: RunConfig
    place: Path
    sizes: Sizes
    shows_data: bool = False
    round: int = 0
    value: float = -math.inf
    moved: float = 0.0
    evaluation: float = 0.0
    failed: str = ""

    @property
    def rounds(self) -> int:
        """Those of the whole run."""
        return sum(phase.rounds for phase in self.sizes.phases)

    def after(self, parts: int) -> int:
        """The round at which so many parts of its run are done, which is validated."""
        every: int = self.config.evaluation.every
        return min(self.rounds, every * max(1, round(parts * self.rounds / PARTS / every)))

    def planned(self, parts: int) -> float:
        """Bytes per user, as they are planned, until so many parts are done."""
        return expected(self.sizes, self.after(parts))


def candidates_of(overrides: Sequence[str], among: Sequence[str], base: Path) -> list[Candidate]:
    """All candidates, none of them tried yet. Raises ConfigError with all that is wrong with them."""
    typed = {key_of(text): text.partition("=")[2].strip() for text in overrides}
    problems = [
        f"{key}={typed[key]}: `fedrec tune` begins runs of its own, of the experiments that --among names; leave it out"
        for key in (EXPERIMENT, "resume")
        if key in typed
    ]
    if typed.get("strategy.patience", "null") != "null":
        problems.append(
            f"strategy.patience={typed['strategy.patience']}: `fedrec tune` itself ends the runs that are not good "
            "enough; leave it out"
        )
    problems += [
        f"--among {name}: there is no such experiment; {nearest(name, experiments())}"
        for name in among
        if name not in experiments()
    ]
    if len(set(among)) < len(among) or not among:
        problems.append(f"--among: expected experiments, each once, got {', '.join(among) or 'none'}")
    if problems:
        raise ConfigError(problems)
    name = typed.get("run_id", new_name())
    rest = [text for text in overrides if key_of(text) != "run_id"]
    found: list[Candidate] = []
    for experiment in among:
        chosen = [f"{EXPERIMENT}={experiment}", *rest]
        one = candidate_of(experiment, chosen, name, base, found[0].sizes.items if found else None)
        if there := [str(folder) for folder in (one.place, search_of(one.place)) if folder.exists()]:
            raise ConfigError([f"run_id={name}: {' and '.join(there)} is there already; choose another, or remove it"])
        found.append(one)
    return found


def new_name() -> str:
    """A name for the folder of a run that is searched for."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-tuned-{secrets.token_hex(2)}"


def candidate_of(name: str, chosen: Sequence[str], run_id: str, base: Path, items: int | None = None) -> Candidate:
    """A candidate that overrides make, not tried yet. Raises ConfigError if they are not valid, or nothing validates.

    Args:
        name: Of the candidate, and of its folder in that of the search.
        chosen: The overrides, without `run_id`.
        run_id: Of the run that is chosen in the end.
        base: The user's working directory.
        items: How many items the data have, if that is known; None: they are read, and a person is shown them.
    """
    typed = set(map(key_of, chosen))
    strategy: Any = compose(chosen, base=base).strategy
    often = {
        "evaluation.every": max(1, strategy.rounds // PARTS),
        "strategy.patience": "null" if strategy.patience is None else _PATIENCE,
    }
    if "evaluation.every" in typed:  # then this may be less patience than the search has
        often["strategy.patience"] = "null"
    chosen = [*chosen, *(f"{key}={value}" for key, value in often.items() if key not in typed)]
    config = settle(compose([*chosen, f"run_id={run_id}"], base=base), base)
    _require_choosable(config)
    assert config.runs_dir is not None
    place = config.runs_dir / str(config.run_id)
    aside = dataclasses.replace(config, runs_dir=search_of(place) / name)
    sizes = describe(config, items)
    return Candidate(name, portable(chosen, config), aside, place, sizes, shows_data=items is None)


def search_of(place: Path) -> Path:
    """The folder of the search whose result belongs to a place."""
    return place.with_name(f"{place.name}-search")


def _require_choosable(config: RunConfig) -> None:
    """Raise ConfigError if there is no validation by which a choice could be made."""
    if config.runtime != "simulation":
        raise ConfigError(["runtime=deployment: `fedrec tune` tries experiments in a simulation; leave it out"])
    for key, on in (("validation=false", config.evaluation.validation), ("every=0", config.evaluation.every)):
        if not on:
            raise ConfigError([f"evaluation.{key}: `fedrec tune` chooses by validation; leave it out"])
    if accounts(config):
        raise ConfigError(
            [
                f"privacy={config.privacy.name}: it accounts for what updates give away, and `fedrec tune` chooses by "
                "metrics, for which nothing is charged: choose on data that need no such protection"
            ]
        )
