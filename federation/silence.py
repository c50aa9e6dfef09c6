"""Nodes that do not answer: after several unanswered messages in a row a node rests, so that no round waits for it."""

from __future__ import annotations

from collections import Counter

_LONGEST = 32
"""Rounds that a node rests at most before it is tried again."""


class Silences:
    """Counts each node's silences in a row. A node that rests is tried again after 1, 2, 4, ... rounds."""

    def __init__(self, patience: int) -> None:
        """`patience`: silences in a row after which a node rests."""
        self._patience = patience
        self._silences: Counter[int] = Counter()
        self._rests: dict[int, int] = {}

    def round_begins(self, connected: set[int]) -> None:
        """Rests are a round shorter; nodes that are not connected any more are forgotten."""
        self._rests = {node: left - 1 for node, left in self._rests.items() if left > 1 and node in connected}
        for node in set(self._silences) - connected:
            del self._silences[node]

    @property
    def resting(self) -> set[int]:
        """Nodes that are not asked for anything now."""
        return set(self._rests)

    def heard(self, node: int) -> None:
        """The node has said something, in time or late: it is not silent, and rests no more."""
        self._silences.pop(node, None)
        self._rests.pop(node, None)

    def silent(self, node: int) -> bool:
        """The node has not answered; whether it rests from now on."""
        self._silences[node] += 1
        beyond = self._silences[node] - self._patience
        if beyond < 0:
            return False
        self._rests[node] = 1 + min(2**beyond, _LONGEST)  # the round that begins next counts the first down
        return True
