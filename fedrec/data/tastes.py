"""Tastes that change: what each made-up user likes at each of its draws."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Tastes:
    """What users like at every draw: at first, and changed from then on in one slot after another.

    Attributes:
        who: int64 [draws], ascending.
        first: int64 [users], the first draw of each.
        topics, styles: int64 [users, slots], at first.
        places: int64 [changes], the draws at which one changes, ascending.
        slots: int64 [changes], the slot that changes.
        fresh: int64 [2, changes], topic and style from then on.
    """

    who: NDArray[np.int64]
    first: NDArray[np.int64]
    topics: NDArray[np.int64]
    styles: NDArray[np.int64]
    places: NDArray[np.int64]
    slots: NDArray[np.int64]
    fresh: NDArray[np.int64]

    @classmethod
    def drawn(
        cls,
        rng: np.random.Generator,
        who: NDArray[np.int64],
        topics: NDArray[np.int64],
        styles: NDArray[np.int64],
        drift: float,
        of: tuple[int, int],
    ) -> Tastes:
        """Draw at which draws users change, and to what.

        Args:
            rng: Where from.
            who: int64 [draws], the user of each, ascending; none is left out.
            topics: int64 [users, slots], what each likes at first.
            styles: The same.
            drift: Share of a user's draws, after its first, at which one slot changes.
            of: Numbers of topics and of styles.
        """
        first = np.flatnonzero(np.diff(who, prepend=-1))
        places = np.flatnonzero(rng.random(len(who)) < drift) if drift else np.zeros(0, dtype=np.int64)
        places = np.setdiff1d(places, first, assume_unique=True)
        slots = rng.integers(topics.shape[1], size=len(places))
        fresh = np.stack([rng.integers(each, size=len(places)) for each in of])
        return cls(who, first, topics, styles, places, slots, fresh)

    def of(self, slot: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Topic and style in a slot for each draw: int64 [draws] twice."""
        topic, style = self.topics[self.who, slot], self.styles[self.who, slot]
        for number in range(self.topics.shape[1]):
            draws = np.flatnonzero(slot == number)
            changed, latest = self._latest(draws, number)
            topic[draws[changed]], style[draws[changed]] = self.fresh[:, latest]
        return topic, style

    def at(self, draws: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Topics and styles, in all slots, at one draw of each user: int64 [users, slots] twice."""
        topics, styles = self.topics.copy(), self.styles.copy()
        for number in range(self.topics.shape[1]):
            changed, latest = self._latest(draws, number)
            topics[changed, number], styles[changed, number] = self.fresh[:, latest]
        return topics, styles

    def _latest(self, draws: NDArray[np.int64], slot: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which of these draws come after a change of their user in this slot, and the latest change of each."""
        mine = np.flatnonzero(self.slots == slot)
        found = np.searchsorted(self.places[mine], draws, side="right") - 1
        changed = np.flatnonzero(found >= 0)
        latest = mine[found[changed]]
        same = self.places[latest] >= self.first[self.who[draws[changed]]]
        return changed[same], latest[same]
