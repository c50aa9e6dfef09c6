"""Each user by itself, with the probability `fraction`: what the accounting of privacy by sampling rests on.

Nobody but the server may know who was chosen: the draws come from its secret root, by a cryptographic function. A round
may have no users at all, and is a round like any other. A run that is resumed in a deployment chooses anew: the same
users a second time would be another sampling than the one that is accounted.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from federation.cohorts.base import CohortSampling, Roots
from fedrec.config.schema import RunConfig
from fedrec.core.registry import MemberConfig, cohorts


@dataclass(frozen=True)
class PoissonConfig(MemberConfig):
    """Nothing to choose: the probability is `federation.fraction`."""

    name: Literal["poisson"]


@cohorts.register("poisson")
class PoissonCohort(CohortSampling):
    """Independent draws from the server's secret root."""

    config_class = PoissonConfig

    @classmethod
    @override
    def problems(cls, config: RunConfig) -> list[str]:
        over = config.federation.over_sampling
        found = []
        if over:
            found.append(
                f"federation.over_sampling={over}: with cohort=poisson a round takes everybody whom it has "
                "drawn, and who is quick must not matter; give 0.0"
            )
        return found

    @override
    def choose(self, keys: NDArray[np.uint64], round: int, fraction: float, roots: Roots) -> NDArray[np.int64]:
        stream = hashlib.shake_256(f"{roots.secret}/cohort/{round}".encode()).digest(8 * len(keys))
        drawn = np.empty(len(keys), dtype=np.uint64)
        drawn[np.argsort(keys)] = np.frombuffer(stream, dtype="<u8")  # in the order of the keys, whatever the layout
        uniform = (drawn >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return np.flatnonzero(uniform < fraction)

    @override
    def awaited(self, users: int, chosen: int, fraction: float) -> int:
        return chosen
