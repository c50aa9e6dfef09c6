"""The contract of a way to choose the users of a round."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedrec.config.schema import RunConfig
from fedrec.core.registry import MemberConfig


class Roots(NamedTuple):
    """Where a choice may take its randomness from.

    Attributes:
        public: The run's seed, which every device is told.
        secret: From the server's secret root. In a deployment it is another each time that a run is resumed.
    """

    public: int
    secret: int


class CohortSampling(ABC):
    """A member of the family `cohort`.

    Whom it chooses depends on who is here and on nothing else of where they live, so that any layout of the users on
    nodes chooses the same ones.
    """

    config_class: ClassVar[type[MemberConfig]]

    def __init__(self, config: Any) -> None:
        self.config = config

    @classmethod
    def problems(cls, config: RunConfig) -> list[str]:
        """What does not fit together in a configuration, one line each."""
        return []

    @abstractmethod
    def choose(self, keys: NDArray[np.uint64], round: int, fraction: float, roots: Roots) -> NDArray[np.int64]:
        """Places in `keys` of the users who train in a round, ascending.

        Args:
            keys: uint64 [users], different keys of the users who are here, in any order.
            round: The round.
            fraction: Share of the users who are wanted, above 0; it may be above 1, and all are then chosen.
            roots: Of the randomness.
        """

    @abstractmethod
    def awaited(self, users: int, chosen: int, fraction: float) -> int:
        """Users with whose answers a round is complete.

        Args:
            users: How many are here.
            chosen: How many were chosen, those asked beyond `fraction` included.
            fraction: Share of the users who should train, at most 1.
        """
