"""The best round: the one with the best validation so far, whose model is tested at the end and recommended from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from federation.server_model import ServerState
from fedrec.config.validate import plain
from fedrec.evaluation.compared_by import curve_metric

_GAIN = 1e-9
"""By which a validation is better or worse: sums over other nodes differ in their last bits, and no choice may."""


@dataclass(frozen=True)
class BestRound:
    """A round, and the models after it.

    Attributes:
        round: The round.
        validation: Its validation, means over users.
        states: Where the model of each group stood, without the server's optimiser: nothing is trained from here.
        groups: The metrics of each group by split; empty if there are none.
        since: Validations since the last one that was better than all before.
    """

    round: int
    validation: Mapping[str, float]
    states: Mapping[str, ServerState]
    groups: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    since: int = 0

    @property
    def value(self) -> float:
        """By which rounds are compared: NDCG@10 in full ranking, or NDCG at the largest cut-off."""
        return self.validation[curve_metric(self.validation)]

    def facts(self) -> dict[str, Any]:
        """All but the states, for JSON."""
        return {name: plain(getattr(self, name)) for name in ("round", "validation", "groups", "since")}

    def with_validation(self, tested: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """The metrics of each group by split, as they were validated then and are tested now."""
        return {group: {**self.groups.get(group, {}), **splits} for group, splits in tested.items()}


class RoundChoice:
    """Chooses the round whose models are for use, by validation.

    Attributes:
        best: The round with the best validation so far; None before the first, or if validation does not choose.
    """

    def __init__(self, on: bool, patience: int | None) -> None:
        """Of a run that has not begun.

        Args:
            on: Whether validation chooses.
            patience: Validations without a better one after which the run ends; None: it does not.
        """
        self.best: BestRound | None = None
        self._on = on
        self._patience = patience

    @property
    def left(self) -> int | None:
        """Validations without a better one after which the run would end; None if it would not."""
        if self.best is None or self._patience is None:
            return None
        return max(0, self._patience - self.best.since)

    def compare(self, now: BestRound) -> None:
        """A round has been validated: the better one stays, of equal ones the last."""
        if not self._on:
            return
        gain = self.best is None or now.value > self.best.value + _GAIN
        since = 0 if self.best is None or gain else self.best.since + 1
        if self.best is None or now.value >= self.best.value - _GAIN:
            states = {group: replace(state, optimiser={}) for group, state in now.states.items()}
            self.best = replace(now, states=states, since=since)
        else:
            self.best = replace(self.best, since=since)
