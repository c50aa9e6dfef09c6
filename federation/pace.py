"""How long nodes are waited for: what each has needed so far decides, up to a limit.

A node of which nothing is known has the configured time. One that needed longer, which its late answers tell, is given
half as much again as it needs, so that it counts in the rounds that follow. One that could not make it even within the
limit is given no more time than the others: it is for `federation.rests` to leave it out.
"""

from __future__ import annotations

MOST = 3.0
"""A node is waited for this many times the configured time at most."""
_MARGIN = 1.5


class Pace:
    """What each node has needed for each kind of message, in seconds."""

    def __init__(self) -> None:
        self._needs: dict[tuple[int, str], float] = {}

    def needed(self, node: int, kind: str, seconds: float) -> None:
        """An answer came, in time or late. A longer time counts at once, a shorter one by half."""
        before = self._needs.get((node, kind), 0.0)
        self._needs[node, kind] = max(seconds, (before + seconds) / 2)

    def allowance(self, node: int, kind: str, patience: float) -> float:
        """Seconds that the node is waited for, where one of which nothing is known has `patience`."""
        need = self._needs.get((node, kind), self._longest(node))
        return patience if self.too_slow(node, kind, patience) else max(patience, min(MOST * patience, _MARGIN * need))

    def _longest(self, node: int) -> float:
        """What it has needed for any kind: a first message of another kind goes to the same machine."""
        return max((seconds for (known, _), seconds in self._needs.items() if known == node), default=0.0)

    def too_slow(self, node: int, kind: str, patience: float) -> bool:
        """Whether it has lately needed longer than anybody is waited for."""
        return self._needs.get((node, kind), 0.0) > MOST * patience

    def seconds(self, node: int, kind: str) -> float:
        """What the node needs, as far as is known."""
        return self._needs.get((node, kind), 0.0)

    def forget(self, nodes: set[int]) -> None:
        """All but these nodes are gone."""
        self._needs = {key: seconds for key, seconds in self._needs.items() if key[0] in nodes}
