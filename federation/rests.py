"""Nodes that are left out for a time: those that do not answer, or would be sent the same again and again."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

_MOST_DOUBLINGS = 5
_LONGEST = 3600.0
"""Seconds that a node rests at most before it is tried again."""


class _Rest(NamedTuple):
    until: float
    why: str


class Rests:
    """Who rests, and until when. Rests grow: 1, 2, 4, ... 32 times what waiting for the node has cost, at most an hour.

    They are counted in seconds and not in rounds: a round that waits for more nodes would never end a rest that is
    counted in rounds.
    """

    def __init__(self, patience: int, clock: Callable[[], float] = time.monotonic) -> None:
        """A node rests after `patience` silences in a row."""
        self._patience = patience
        self._clock = clock
        self._silences: Counter[int] = Counter()
        self._waited: dict[int, float] = {}
        self._others: Counter[int] = Counter()
        self._rests: dict[int, _Rest] = {}

    def connected(self, nodes: set[int]) -> None:
        """All but these nodes are gone, and forgotten: who comes back begins anew."""
        for known in (self._silences, self._waited, self._others, self._rests):
            for node in set(known) - nodes:
                del known[node]

    @property
    def resting(self) -> set[int]:
        """Nodes that are not asked for anything now."""
        now = self._clock()
        return {node for node, rest in self._rests.items() if rest.until > now}

    def awake(self, node: int) -> None:
        """The node rests no more. How often it was silent is not forgotten: its next rest may be a longer one."""
        self._rests.pop(node, None)

    def answered(self, node: int) -> None:
        """The node has done what it was asked for: it is not silent, and rests no more."""
        self.awake(node)
        self._silences.pop(node, None)
        self._waited.pop(node, None)

    def silent(self, node: int, waited: float) -> bool:
        """The node has not answered for `waited` seconds; whether it rests from now on."""
        self._silences[node] += 1
        self._waited[node] = max(waited, self._waited.get(node, 0.0))
        beyond = self._silences[node] - self._patience
        if beyond < 0:
            return False
        times = self._silences[node]
        said = f"{times} messages in a row" if times > 1 else "a message"
        self._rest(node, self._waited[node], beyond, f"it has left {said} unanswered")
        return True

    def leave_out(self, node: int, seconds: float, why: str) -> None:
        """The node rests for that long, and for twice as long each time that this happens again."""
        self._rest(node, seconds, self._others[node], why)
        self._others[node] += 1

    def _rest(self, node: int, seconds: float, doublings: int, why: str) -> None:
        length = min(_LONGEST, seconds * 2 ** min(doublings, _MOST_DOUBLINGS))
        self._rests[node] = _Rest(self._clock() + length, why)

    def said(self) -> list[str]:
        """For each node that rests, until when and why."""
        now = self._clock()
        return [
            f"node {node} rests for {rest.until - now:.0f} s more: {rest.why}"
            for node, rest in sorted(self._rests.items())
            if rest.until > now
        ]
