"""Simulated devices: what two members of the family have in common."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
from annotated_types import Ge, Gt, Le
from numpy.typing import NDArray
from typing_extensions import override

from fedrec.config.schema import RunConfig
from fedrec.core.bounds import MOST_EXAMPLES, MOST_SECONDS
from fedrec.networks.base import Megabits, UplinkConfig, UplinkNetwork


class Devices(NamedTuple):
    """What users' devices can do.

    Attributes:
        uplink: float64 [users], megabits that each sends in a second.
        downlink: float64 [users], megabits that each receives in a second.
        speed: float64 [users], training interactions that each takes one local step on in a second.
    """

    uplink: NDArray[np.float64]
    downlink: NDArray[np.float64]
    speed: NDArray[np.float64]


@dataclass(frozen=True)
class SimulatedConfig(UplinkConfig):
    """What the configurations of simulated networks have in common.

    Attributes:
        uplink: Megabits that a device sends in a second.
        downlink: Megabits that it receives in a second.
        speed: Training interactions that it takes one local step on in a second, each with its negatives.
        latency: Seconds of a user's round beside transfer and work: connecting, and waiting for an answer.
    """

    uplink: Megabits
    downlink: Megabits
    speed: Annotated[float, Gt(0), Le(MOST_EXAMPLES)]
    latency: Annotated[float, Ge(0), Le(MOST_SECONDS)]


class SimulatedNetwork(UplinkNetwork):
    """Devices that exist by name only, each drawn from (seed, key)."""

    @classmethod
    def problems(cls, config: RunConfig) -> list[str]:
        """Devices that are there cannot be simulated, and neither can a round that ends when enough have answered."""
        name = config.network.name
        if config.runtime == "deployment":
            return [
                f"network={name}: with runtime=deployment devices are what they are, and take the time that they take; "
                "take network=none, or network=grades, by which sites say how fast their devices send"
            ]
        if config.federation.over_sampling:
            return [
                f"federation.over_sampling={config.federation.over_sampling}: with network={name} time is simulated, "
                "and that round ends when enough nodes have answered by the clock on the wall; give 0"
            ]
        return []

    @abstractmethod
    def devices(self, keys: NDArray[np.uint64]) -> Devices:
        """Those of the users with these opaque keys, uint64 [users]."""

    @override
    def uplink(self, keys: NDArray[np.uint64], grade: str = "") -> NDArray[np.float64]:
        return self.devices(keys).uplink
