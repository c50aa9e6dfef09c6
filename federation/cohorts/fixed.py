"""As many users in every round: the share of those here, rounded half up, and at least one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from federation.cohorts.base import CohortSampling, Roots
from fedrec.core.registry import MemberConfig, cohorts
from fedrec.core.rng import counter_bits, derive


@dataclass(frozen=True)
class FixedConfig(MemberConfig):
    """Nothing to choose."""

    name: Literal["fixed"]


@cohorts.register("fixed")
class FixedCohort(CohortSampling):
    """The users with the smallest number drawn from (seed, round, key): every device could work out who they are."""

    config_class = FixedConfig

    @override
    def choose(self, keys: NDArray[np.uint64], round: int, fraction: float, roots: Roots) -> NDArray[np.int64]:
        size = _size(len(keys), fraction)
        if size >= len(keys):
            return np.arange(len(keys))
        # Different keys never draw the same number: the last step of the mixing can be undone.
        drawn = counter_bits(derive(roots.public, "cohort"), round, keys)
        return np.sort(np.argpartition(drawn, size - 1)[:size])

    @override
    def awaited(self, users: int, chosen: int, fraction: float) -> int:
        return _size(users, fraction)


def _size(users: int, fraction: float) -> int:
    return max(1, round_half_up(fraction * users))


def round_half_up(value: float) -> int:
    """The nearest whole number, halves upwards (the built-in rounds halves to even)."""
    return int(value + 0.5)
