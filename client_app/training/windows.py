"""What of their histories users train on in a round."""

from __future__ import annotations

import numpy as np

from client_app.homes.users import Cohort
from fedrec.core.rng import counter_integers, derive
from fedrec.optim.base import Window


def windows(cohort: Cohort, window: Window | None, seed: int) -> Cohort:
    """The users with the items of their window alone: consecutive ones, a function of the seed and the user.

    Args:
        cohort: The users and their whole histories.
        window: What of them is read; None: all.
        seed: Secret seed of the round.
    """
    if window is None:
        return cohort
    lengths = np.minimum(cohort.lengths, window.length)
    spare = cohort.lengths - lengths
    first = spare
    if window.placement == "random":
        first = counter_integers(derive(seed, "window"), spare + 1, cohort.keys)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    source = np.arange(offsets[-1]) + np.repeat(cohort.offsets[:-1] + first - offsets[:-1], lengths)
    return Cohort(cohort.keys, offsets, cohort.items[source])
