"""What a run has to warn of: users and replies that did not count, in rounds as they end and in the run as a whole."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from federation.mends import REPLIES, USERS

log = logging.getLogger("fedrec")


class Warnings:
    """Counts what was left out, round by round.

    Each reason is said in the first round in which it occurs and then when it has occurred in 2, 4, 8, ... rounds: a
    run of a thousand rounds has at most ten lines of one kind.
    """

    def __init__(self) -> None:
        self._asked = 0
        self._rounds = 0
        self._users: Counter[str] = Counter()
        self._replies: Counter[str] = Counter()
        self._rounds_of: Counter[str] = Counter()

    def add(self, record: Mapping[str, Any]) -> list[str]:
        """Count a round by its line of the metrics; what is worth saying now."""
        self._rounds += 1
        self._asked += record["cohort"]
        said = []
        if record["cohort"] and record.get("unchanged") and self._often("nobody"):
            said.append(f"round {record['round']}: {self._nobody()}")
        for name, count in record.get("dropped_users", {}).items():
            self._users[name] += count
            if self._often(f"users {name}"):
                share = f"{count:,} of {record['cohort']:,} chosen users"
                said.append(f"round {record['round']}: {share} were left out, {name}: {USERS.get(name, 'see the log')}")
        for name, count in record["dropped_replies"].items():
            self._replies[name] += count
            if self._often(f"replies {name}"):
                said.append(f"round {record['round']}: {name} {count:,} times: {REPLIES.get(name, 'see the log')}")
        return said

    def _often(self, name: str) -> bool:
        """Count a round for a reason; whether the number of its rounds is a power of two."""
        self._rounds_of[name] += 1
        return not self._rounds_of[name] & (self._rounds_of[name] - 1)

    def _nobody(self) -> str:
        why = "nobody's update counted, or fewer than the noise needs"
        return f"the model is as it was: {why} ({self._rounds_of['nobody']:,} such rounds so far)"

    def of_the_run(self) -> list[str]:
        """A line for each reason, over all rounds that were counted."""
        said = []
        if nobody := self._rounds_of["nobody"]:
            rounds = f"{nobody:,} of {self._rounds:,} rounds"
            said.append(f"{rounds} have changed nothing: nobody's update counted, or fewer than the noise needs")
        for name, count in sorted(self._users.items()):
            share = f"{count:,} of {self._asked:,} times ({_percent(count, self._asked)}) that a user was chosen"
            said.append(f"{share} it was left out, {name}: {USERS.get(name, 'see the log')}")
        for name, count in sorted(self._replies.items()):
            said.append(
                f"{name} {count:,} times in {self._rounds_of[f'replies {name}']:,} of {self._rounds:,} rounds: "
                f"{REPLIES.get(name, 'see the log')}"
            )
        return said


def _percent(part: int, whole: int) -> str:
    share = 100 * part / max(1, whole)
    return f"{share:.0f} %" if share >= 1 else "less than 1 %"


def warnings_of(metrics: Path) -> list[str]:
    """What a whole run has to warn of, by its `metrics.jsonl`."""
    counted = Warnings()
    for line in metrics.read_text(encoding="utf-8").splitlines():
        counted.add(json.loads(line))
    return counted.of_the_run()
