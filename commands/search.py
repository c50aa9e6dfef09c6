"""`fedrec tune --trials`: Optuna looks for values of the chosen members, over the spaces that these declare.

Each trial begins a run of its own and is validated after a sixteenth, an eighth, a quarter and a half of its rounds;
one that is below the median of the earlier trials at the same place is given up. The best goes on to its end, and is
the run that its overrides make. What the others have moved is added up and shown: a search of this width is for a
simulation.

The study is Optuna's journal in the folder of the search, and at the end in that of the run. Every trial's draws are a
function of the seed and of the trials before it, so that a search which was interrupted, typed again with its `run_id`,
comes to the same end.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from commands.candidates import Candidate, candidate_of, search_of
from fedrec.config.compose import compose
from fedrec.config.paths import assign, key_of, settle
from fedrec.config.schema import RunConfig
from fedrec.core.errors import ConfigError, FederationError, FedrecError
from fedrec.core.registry import FAMILIES
from fedrec.core.space import Axis, OneOf, Real

if TYPE_CHECKING:
    import optuna

log = logging.getLogger("fedrec")

STUDY = "study.log"
"""Optuna's journal, in the folder of the search and then in that of the run."""
_RUNGS = (1, 2, 4, 8)  # parts of `PARTS`
_ROUND, _MOVED, _EVALUATION, _FAILED = "round", "moved", "evaluation", "failed"


def space_of(config: RunConfig, typed: Sequence[str]) -> dict[str, Axis]:
    """The axes of a configuration's members by dotted key, without those whose key was typed."""
    given = set(map(key_of, typed))
    return {
        f"{family}.{key}": axis
        for family in FAMILIES
        for key, axis in getattr(FAMILIES[family].get(getattr(config, family).name), "space", {}).items()
        if f"{family}.{key}" not in given
    }


class Search:
    """A study, and the runs of its trials.

    Attributes:
        place: Where the chosen run belongs.
    """

    def __init__(self, overrides: Sequence[str], base: Path, run_id: str) -> None:
        """Open the study of `run_id`, or begin it. Raises ConfigError if nothing is left to be searched."""
        optuna = _optuna()
        self._typed = [text for text in overrides if key_of(text) != "run_id"]
        self._base, self._run_id = base, run_id
        config = settle(compose([*self._typed, assign("run_id", run_id)], base=base), base)
        assert config.runs_dir is not None
        self.place = config.runs_dir / run_id
        if self.place.exists():
            raise ConfigError([f"run_id={run_id}: {self.place} is there already; choose another, or remove it"])
        self.folder = search_of(self.place)
        self._space, self._seed = space_of(config, self._typed), config.seed
        if not self._space:
            raise ConfigError(
                ["--trials: none of the chosen members declares values to search over, or all of them are typed"]
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        journal = self.folder / STUDY
        try:
            storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal)))
            self._study = optuna.create_study(
                study_name=run_id,
                storage=storage,
                load_if_exists=True,
                direction="maximize",
                pruner=optuna.pruners.MedianPruner(n_startup_trials=3),
            )
        except (ValueError, LookupError, TypeError) as error:  # lines that are none of a journal, whatever they are
            raise FedrecError(
                f"{journal} is damaged ({error}): put it back from a copy, or choose another run_id"
            ) from error
        self._require_same(config)
        self._items: int | None = None

    def _require_same(self, config: RunConfig) -> None:
        """The study goes on only for what it was begun for."""
        wanted = {"typed": self._typed, "space": {key: repr(axis) for key, axis in self._space.items()}}
        if not self._study.user_attrs:
            for name, value in wanted.items():
                self._study.set_user_attr(name, value)
        elif (begun := {name: self._study.user_attrs.get(name) for name in wanted}) != wanted:
            raise ConfigError(
                [
                    f"run_id={self._run_id}: the search in {self.folder} was begun with other overrides "
                    f"({' '.join(begun['typed'] or [])}) or other spaces: type the same, or choose another run_id"
                ]
            )

    def run(self, trials: int, console: Console, attempt: Any) -> tuple[Candidate, list[Candidate]]:
        """Try until there are so many trials; the best candidate, and all.

        Args:
            trials: In all, with those of before.
            console: Where progress is shown.
            attempt: Lets a candidate go on until so many parts of its run are done (`commands.tune`).

        Raises FederationError if none could be tried.
        """
        optuna = _optuna()
        for number in self._interrupted():
            shutil.rmtree(self.folder / _name(number), ignore_errors=True)
        while (number := len(self._ended())) < trials:
            self._study.sampler = optuna.samplers.TPESampler(seed=self._seed + number, n_startup_trials=5)
            trial = self._study.ask()
            try:
                self._try(trial, number, console, attempt)
            except BaseException:
                self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
                raise
        found = [(trial, self._again(number, trial)) for number, trial in enumerate(self._ended())]
        able = [(trial, each) for trial, each in found if each is not None and not each.failed]
        if not able:
            raise FederationError(
                "no trial could be trained: " + "; ".join(trial.user_attrs.get(_FAILED, "") for trial, _ in found)
            )
        # Of those that went as far as any, the best: one that was given up early has not shown what it can.
        best = max((each for _, each in able), key=lambda each: (each.round, each.value))
        return best, [each for _, each in found if each is not None]

    def close(self, chosen: Candidate) -> None:
        """Put the study beside the run that came of it."""
        (self.folder / STUDY).replace(chosen.place / STUDY)

    def _try(self, trial: optuna.Trial, number: int, console: Console, attempt: Any) -> None:
        optuna = _optuna()
        states = optuna.trial.TrialState
        try:
            candidate = candidate_of(
                _name(number), self._overrides(self._drawn(trial)), self._run_id, self._base, self._items
            )
        except FedrecError as error:  # values that do not go together
            trial.set_user_attr(_FAILED, str(error))
            self._study.tell(trial, -1.0)
            return
        self._items = candidate.sizes.items
        for step, parts in enumerate(_RUNGS):
            attempt(candidate, parts, console)
            for name, value in (
                (_ROUND, candidate.round),
                (_MOVED, candidate.moved),
                (_EVALUATION, candidate.evaluation),
            ):
                trial.set_user_attr(name, value)
            if candidate.failed:
                trial.set_user_attr(_FAILED, candidate.failed)
                self._study.tell(trial, -1.0)
                return
            trial.report(candidate.value, step)
            if step < len(_RUNGS) - 1 and trial.should_prune():
                self._study.tell(trial, state=states.PRUNED)
                return
        self._study.tell(trial, candidate.value)

    def _drawn(self, trial: optuna.Trial) -> dict[str, Any]:
        return {key: _suggested(trial, key, axis) for key, axis in self._space.items()}

    def _overrides(self, values: Mapping[str, Any]) -> list[str]:
        return [*self._typed, *(f"{key}={str(value).lower()}" for key, value in values.items())]

    def _again(self, number: int, trial: optuna.trial.FrozenTrial) -> Candidate | None:
        """The candidate of a trial that has ended, as far as it came; None for values that do not go together."""
        attrs = trial.user_attrs
        if _ROUND not in attrs:
            return None
        overrides = self._overrides(trial.params)
        found = candidate_of(_name(number), overrides, self._run_id, self._base, self._items)
        self._items = found.sizes.items
        found.round, found.moved, found.evaluation = attrs[_ROUND], attrs[_MOVED], attrs[_EVALUATION]
        found.failed, found.shows_data = attrs.get(_FAILED, ""), False
        found.value = max(trial.intermediate_values.values(), default=-math.inf)
        return found

    def _ended(self) -> list[optuna.trial.FrozenTrial]:
        """Trials that came to an end of their own, in their order."""
        states = _optuna().trial.TrialState
        return [trial for trial in self._study.trials if trial.state in (states.COMPLETE, states.PRUNED)]

    def _interrupted(self) -> list[int]:
        """Numbers of folders that a killed search may have left of its last trial."""
        states = _optuna().trial.TrialState
        for trial in self._study.trials:
            if trial.state == states.RUNNING:
                self._study.tell(trial.number, state=states.FAIL)
        return [len(self._ended())]


def _name(number: int) -> str:
    return f"trial-{number:04d}"


def _suggested(trial: optuna.Trial, key: str, axis: Axis) -> Any:
    if isinstance(axis, OneOf):
        return trial.suggest_categorical(key, axis.values)
    if isinstance(axis, Real):
        return trial.suggest_float(key, axis.low, axis.high, log=axis.log)
    return trial.suggest_int(key, axis.low, axis.high, log=axis.log)


def _optuna() -> Any:
    try:
        import optuna
        import optuna.storages.journal
    except ModuleNotFoundError as error:
        raise FedrecError("--trials needs optuna: pip install '.[tune]', in the clone") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
