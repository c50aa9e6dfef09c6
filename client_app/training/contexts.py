"""What users read of their histories in a round: all of it, a window, or several prefixes with what follows them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client_app.homes.users import Cohort
from client_app.training.windows import windows
from fedrec.core.rng import counter_bits, counter_uniform, derive
from fedrec.optim.base import Contexts, Recipe

_LEAST, _LEAST_AHEAD = 3, 1
"""Items that every prefix has, of a history that has them; and where only what follows it is predicted."""


@dataclass(frozen=True)
class Reading:
    """What each of some users reads: `contexts` runs of consecutive items of its history.

    Attributes:
        keys: uint64 [users], opaque keys.
        contexts: Runs of a user.
        runs: A row for each run [users * contexts], those of a user one after the other. Each has a key of its own, but
            where a user has one run it is the user's.
        fitted: int64 [runs], the first items of each, which private tensors are fitted to; at least one, but none of an
            only item that is to be predicted.
        examples: int64 [users], the training items for which a user counts.
        width: Items that no run has more of, whoever the users are; None: there is no such limit.
    """

    keys: NDArray[np.uint64]
    contexts: int
    runs: Cohort
    fitted: NDArray[np.int64]
    examples: NDArray[np.int64]
    width: int | None = None

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def offsets(self) -> NDArray[np.int64]:
        """int64 [users + 1], where each user's runs begin among all items, and where the last one's end."""
        return self.runs.offsets[:: self.contexts]

    def select(self, users: NDArray[np.int64]) -> Reading:
        """Some of the users, by position, in that order."""
        runs = (users[:, None] * self.contexts + np.arange(self.contexts)).reshape(-1)
        return Reading(
            self.keys[users],
            self.contexts,
            self.runs.select(runs),
            self.fitted[runs],
            self.examples[users],
            self.width,
        )


def whole(cohort: Cohort) -> Reading:
    """Each user reads these items of its own, and fits what is private to all of them."""
    return Reading(cohort.keys, 1, cohort, cohort.lengths, cohort.lengths)


def reading(cohort: Cohort, recipe: Recipe, seed: int) -> Reading:
    """What the recipe has users read in a round, a function of the seed and the user.

    Args:
        cohort: The users and their whole histories.
        recipe: Says how much of them is read.
        seed: Secret seed of the round.
    """
    if recipe.contexts is None:
        return whole(windows(cohort, recipe.window, seed))
    return _prefixes(cohort, recipe.contexts, seed)


def _prefixes(cohort: Cohort, contexts: Contexts, seed: int) -> Reading:
    lengths, part = cohort.lengths[:, None], np.arange(contexts.count)
    drawn = counter_uniform(derive(seed, "contexts"), cohort.keys[:, None], part)
    most = lengths - contexts.ahead_only  # something follows what is not predicted itself
    least = np.minimum(_LEAST_AHEAD if contexts.ahead_only else _LEAST, most)
    least = np.maximum(least, lengths - contexts.span)
    end = least + ((part + drawn) / contexts.count * (most - least + 1)).astype(np.int64)
    end = np.minimum(end, most)  # a sum of fractions may be rounded up to one
    first = np.maximum(0, end - contexts.length)
    last = np.minimum(end + contexts.ahead, lengths)
    begin, held = ((cohort.offsets[:-1, None] + first).reshape(-1), (last - first).reshape(-1))
    offsets = np.concatenate(([0], np.cumsum(held)))
    source = np.arange(offsets[-1]) + np.repeat(begin - offsets[:-1], held)
    keys = cohort.keys
    if contexts.count > 1:
        keys = counter_bits(derive(seed, "context"), keys[:, None], part).reshape(-1)
    runs = Cohort(keys, offsets, cohort.items[source])
    fitted = (end - first).reshape(-1)
    return Reading(cohort.keys, contexts.count, runs, fitted, cohort.lengths, contexts.longest)
