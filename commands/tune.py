"""`fedrec tune`, and `train` and `simulate` where nothing of the recipe is typed: which experiment suits the data.

By validation, for less traffic than the run itself: successive halving over rounds. Each candidate begins its own
whole run, with its own schedule, and stops after a sixteenth of its rounds. The better half goes on for a larger share,
and so on; the last one goes to its end, here or on Flower's runtime, and is the run that `fedrec train` with this
experiment is. So what the search costs is what the candidates that were given up have moved. Their training is planned
beforehand to move at most what the cheapest of them would in a whole run; what cannot be tried for that is left out,
the most expensive first. Their validations are counted beside it, as those of any run are.

The runs of the candidates are kept beside the chosen one, in a folder of the same name that ends in `-search`.
"""

from __future__ import annotations

import dataclasses
import logging
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from rich.table import Table

from client_app.answers.app import app as client_app
from commands.beyond_accuracy import evaluated
from commands.candidates import PARTS, Candidate, candidates_of, new_name
from commands.local_grid import LocalGrid
from commands.progress import RunProgress, amount, figure
from commands.report import show_summary
from commands.search import Search
from federation.contract import StrategyConfig
from fedrec.config.describe import to_yaml
from fedrec.config.paths import key_of
from fedrec.core.disk import writing
from fedrec.core.errors import DataError, FederationError
from fedrec.core.strict_json import json_page
from fedrec.core.whole_files import write_text
from fedrec.evaluation.compared_by import curve_metric
from server_app.run import run
from server_app.run_folder import CONFIG

log = logging.getLogger("fedrec")

CANDIDATES = ("steady", "contexts_1mb", "recency_1mb", "sequences")
"""The experiments that are tried if no others are named: one for each kind of history that we know of."""
_RUNGS = (1, 2, 4, 8)  # parts of `PARTS`


Finish = Callable[[Candidate, Console], dict[str, Any]]
"""Carries a candidate's run, of which a part may be done, to its end, and returns its summary."""


def finished_here(chosen: Candidate, console: Console) -> dict[str, Any]:
    """The `Finish` of `fedrec tune` and `fedrec train`: in this process, as the candidates were tried."""
    return _train(chosen, None, console)


def tune(
    overrides: Sequence[str],
    among: Sequence[str],
    base: Path,
    *,
    console: Console,
    finish: Finish = finished_here,
    command: str = "train",
) -> dict[str, Any]:
    """Try experiments with these overrides, carry the best one to its end, and return its summary with the search.

    `tune.json` in the run's folder has the search, and the command that makes the same run again. Raises ConfigError.

    Args:
        overrides: That hold for all experiments.
        among: The experiments.
        base: The user's working directory.
        console: Where progress and the end are shown.
        finish: Carries the best one to its end.
        command: Of `fedrec`, that does so.
    """
    torch.set_num_threads(1)  # as `fedrec train` does
    started = time.monotonic()
    candidates = candidates_of(overrides, among, base)
    chosen, budget = _halved(candidates, console)
    return _ended(chosen, candidates, budget, started, console, finish, command)


def search(overrides: Sequence[str], trials: int, base: Path, *, console: Console) -> dict[str, Any]:
    """Let Optuna look for values of the members that the overrides choose, and carry the best run to its end.

    Args:
        overrides: What is fixed; with the `run_id` of a search that was interrupted that one goes on.
        trials: How many runs are begun, with those of before.
        base: The user's working directory.
        console: Where progress and the end are shown.

    Returns:
        The summary with the search, as `tune` does. Raises ConfigError.
    """
    torch.set_num_threads(1)
    started = time.monotonic()
    named = [text.partition("=")[2].strip() for text in overrides if key_of(text) == "run_id"]
    looking = Search(overrides, base, named[-1] if named else new_name())
    chosen, candidates = looking.run(trials, console, _try)
    return _ended(chosen, candidates, None, started, console, finished_here, "train", looking.close)


def _halved(candidates: Sequence[Candidate], console: Console) -> tuple[Candidate, float]:
    """The candidate that successive halving leaves, and what it was allowed to move."""
    left = list(candidates)
    budget = min(candidate.planned(PARTS) for candidate in left)
    parts, given_up = 0, 0.0
    while len(left) > 1:
        rung, dearest = affordable(left, parts, budget - given_up)
        if rung:
            parts = rung
            for candidate in left:
                _try(candidate, parts, console)
            if not (able := [each for each in left if not each.failed]):
                raise FederationError("; ".join(f"experiment={each.name}: {each.failed}" for each in left))
            given_up += sum(each.moved for each in left if each.failed)
            left = able
            left.sort(key=lambda each: -each.value)
            half = (len(left) + 1) // 2
            given_up += sum(each.moved for each in left[half:])
            left = left[:half]
        elif dearest is not None:
            left.remove(dearest)
            log.warning("experiment=%s is not tried: it moves too much before it can be judged", dearest.name)
        else:
            break
    return left[0], budget


def _ended(
    chosen: Candidate,
    candidates: Sequence[Candidate],
    budget: float | None,
    started: float,
    console: Console,
    finish: Finish,
    command: str,
    close: Callable[[Candidate], None] | None = None,
) -> dict[str, Any]:
    """Carry the chosen one to its end; its summary, with the search."""
    _move(chosen)
    summary = finish(chosen, console)
    if close is not None:
        close(chosen)
    found = {**_found(chosen, candidates, budget, command), "seconds": time.monotonic() - started}
    write_text(Path(summary["run"]) / "tune.json", json_page(found))
    _show(found, console)
    show_summary(summary, console)
    return {**summary, "tune": found}


def affordable(left: Sequence[Candidate], parts: int, budget: float) -> tuple[int, Candidate | None]:
    """The share of their runs, in parts, until which candidates can be tried next, within what may be given up.

    All but one of them will have been given up for nothing: the cheapest is not counted.

    Args:
        left: The candidates.
        parts: Until which they were tried.
        budget: Bytes per user that may be spent on all but one.

    Returns:
        The next rung that can be afforded; of two candidates the last one. If there is none, 0, and the dearest if they
        were never tried.
    """

    def spent(parts: int) -> float:
        planned = [candidate.planned(parts) for candidate in left]
        return sum(planned) - min(planned)

    rungs = [rung for rung in _RUNGS if rung > parts and spent(rung) <= budget]
    if rungs:
        return rungs[-1 if len(left) == 2 else 0], None
    return 0, max(left, key=lambda each: each.planned(_RUNGS[0])) if not parts else None


def _try(candidate: Candidate, parts: int, console: Console) -> None:
    """Let a candidate go on until so many parts of its run are done; one that cannot, is out of the search."""
    try:
        _train(candidate, candidate.after(parts), console)
    except (FederationError, DataError) as error:
        # It diverged, say, or it wants longer item vectors than so few items have: unknown recipes on unknown data do.
        candidate.failed = str(error)
        candidate.moved = candidate.planned(parts) if isinstance(error, FederationError) else 0.0
        log.warning("experiment=%s is out of the search: %s", candidate.name, error)


def _move(chosen: Candidate) -> None:
    """Let the folder of a candidate's run be where that of the search's result belongs."""
    before, place = chosen.config.runs_dir, chosen.place
    assert before is not None
    chosen.config = dataclasses.replace(chosen.config, runs_dir=place.parent)
    if chosen.round:
        # First the configuration: who is interrupted in between finds the run in one place or the other, and whole.
        write_text(before / place.name / CONFIG, to_yaml(chosen.config))
        with writing(str(place), "set runs_dir=/another/folder"):
            (before / place.name).rename(place)


def _train(candidate: Candidate, until: int | None, console: Console) -> dict[str, Any]:
    """Let a candidate's run go on until after a round, or to its end; what it came to."""
    config = candidate.config
    if until is not None:
        config = dataclasses.replace(
            config, strategy=dataclasses.replace(cast(StrategyConfig, config.strategy), patience=None)
        )
    if candidate.round:
        config = dataclasses.replace(config, resume=config.run_id)
    new = candidate.shows_data and not candidate.round
    with RunProgress(console, shows_data=new) as progress, progress.warnings():
        progress.note(f"experiment={candidate.name}: to round {until or candidate.rounds} of {candidate.rounds}")
        grid = LocalGrid(client_app, config.simulation.nodes)
        result = evaluated(config, run(config, candidate.typed, grid, progress, pause=until), progress.stage)
    candidate.round = result["rounds"]
    candidate.value = result["validation"][curve_metric(result["validation"])]
    candidate.moved = result["bytes_per_user"]["total"]
    candidate.evaluation = result["bytes_per_user"]["evaluation"]
    return result


def _found(chosen: Candidate, candidates: Sequence[Candidate], budget: float | None, command: str) -> dict[str, Any]:
    """The search, for JSON."""
    same = [text for text in chosen.typed if key_of(text) not in ("runs_dir", "cache_dir")]
    return {
        "experiment": chosen.name,
        "command": shlex.join(["fedrec", command, *same]),
        "bytes_per_user": sum(each.moved for each in candidates if each is not chosen),
        "evaluation": sum(each.evaluation for each in candidates if each is not chosen),
        "budget": budget,
        "candidates": [
            {
                "experiment": each.name,
                "rounds": each.rounds,
                "tried": each.round,
                "validation": each.value if each.round else None,
                "bytes_per_user": each.moved,
                "evaluation": each.evaluation,
                **({"failed": each.failed} if each.failed else {}),
            }
            for each in candidates
        ],
    }


def _show(found: dict[str, Any], console: Console) -> None:
    """Print the search."""
    table = Table(title="Tried, by the best validation", title_justify="left")
    for column in ("experiment", "rounds", "of", "NDCG", "bytes per user"):
        table.add_column(column, justify="left" if column == "experiment" else "right")
    for each in found["candidates"]:
        style = "bold" if each["experiment"] == found["experiment"] else None
        cells = (str(each["tried"]), str(each["rounds"]), figure(each["validation"]), amount(each["bytes_per_user"]))
        table.add_row(each["experiment"], *cells, style=style)
    console.print(table)
    which = found["experiment"] if found["budget"] is None else f"experiment={found['experiment']}"
    console.print(
        f"{which} suits the data best; finding that out has moved "
        f"{amount(found['bytes_per_user'])} per user beside its own run, and {amount(found['evaluation'])} for "
        f"validations. That run again: {found['command']}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
