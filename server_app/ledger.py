"""The ledger of a run: what it has given away about its users, release by release.

It is a file of its own, which only grows: a line is written, and is on the disk, before the release that it stands for.
A run that is resumed goes back to a checkpoint in everything else; the rounds that it does again are releases again.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedrec.core.errors import BudgetError, StoreError
from fedrec.privacy.accounting import Sampled, epsilon_of
from fedrec.stages.base import Release

LEDGER = "ledger.jsonl"


class Ledger:
    """The account of one run; it must be the only one on its file."""

    def __init__(
        self, path: Path, fraction: float, epsilon: float | None, delta: float, rounds: int, unit: str
    ) -> None:
        """Open the ledger, with what earlier processes of the run have written.

        Args:
            path: Of the file; it is made with the first release.
            fraction: The probability with which a user is chosen for a round.
            epsilon: The budget; None: there is none, and the account is kept all the same.
            delta: Of the epsilon.
            rounds: Releases in the plan.
            unit: Whom the promise is about.

        Raises:
            StoreError: The file holds something that no ledger has.
        """
        self._path, self._fraction, self._unit = path, fraction, unit
        self._budget, self._delta, self._rounds = epsilon, delta, rounds
        self._releases: Counter[Sampled] = Counter(_read(path))
        self._after: dict[int, Counter[Sampled]] = {}
        self._known: dict[tuple[tuple[Sampled, int], ...], float] = {}

    @property
    def epsilon(self) -> float:
        """What the run has given away so far."""
        return self._of(self._releases)

    def report(self, after: int | None = None) -> dict[str, Any]:
        """The account as a summary has it: so far, or as it stood after a round that this process carried out."""
        releases = self._after.get(after, self._releases) if after is not None else self._releases
        return {
            "epsilon": self._of(releases),
            "delta": self._delta,
            "unit": self._unit,
            "sampling": max((release.sampling for release in releases), default=self._fraction),
            "releases": releases.total(),
        }

    def spend(self, round: int, releases: Sequence[Release]) -> None:
        """Write down what a round is about to release; when this returns it is on the disk.

        Raises BudgetError, and writes nothing, if the run would then have given away more than its budget.
        """
        sampled = [Sampled.of(release, self._fraction) for release in releases]
        after = self._releases + Counter(sampled)
        if self._budget is not None and not self._within(after):
            raise BudgetError(
                f"round {round} would take the run to epsilon={self._of(after):.3f} at delta={self._delta:g}, and its "
                f"budget is privacy.epsilon={self._budget:g}. {self._path} has {self._releases.total()} releases, the "
                f"plan {self._rounds}: rounds that are done again count again. The newest checkpoint is what the "
                "budget allows; for a run that ends with its test, start one of fewer rounds or with a larger budget"
            )
        with self._path.open("a", encoding="utf-8") as file:
            for release in sampled:
                line = {name: value for name, value in asdict(release).items() if value is not None}
                file.write(json.dumps({"round": round, **line}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._releases = self._after[round] = after

    def _within(self, releases: Counter[Sampled]) -> bool:
        """Whether these are within the budget; what is part of a plan that is needs no sum of its own."""
        assert self._budget is not None
        if len(releases) == 1 and releases.total() <= self._rounds:
            (kind,) = releases
            if self._of(Counter({kind: self._rounds})) <= self._budget:
                return True
        return self._of(releases) <= self._budget

    def _of(self, releases: Counter[Sampled]) -> float:
        key = tuple(sorted(releases.items(), key=repr))
        if key not in self._known:
            self._known[key] = epsilon_of(releases, self._delta)
        return self._known[key]


def _read(path: Path) -> list[Sampled]:
    """The releases in a ledger. Raises StoreError for a line that is none."""
    if not path.exists():
        return []
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            values = json.loads(line)
            kind = {"mechanism": str(values["mechanism"])} if "mechanism" in values else {}  # one of old is gaussian
            grid = float(values["grid"]) if "grid" in values else None
            found.append(Sampled(float(values["noise_multiplier"]), float(values["sampling"]), **kind, grid=grid))
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"line {number} of the ledger {path} cannot be read ({error!r}), so that nobody knows what the run has "
                "given away: put the file back from a copy, or start a new run. (A last line that is cut off was being "
                "written when the machine stopped, and nothing was released for it: it can be removed)"
            ) from error
    return found
