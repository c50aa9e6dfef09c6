"""Simulated devices: what two members of the family have in common."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

import numpy as np
from annotated_types import Ge, Gt, Le
from numpy.typing import NDArray
from typing_extensions import override

from fedrec.config.schema import RunConfig
from fedrec.core.bounds import MOST_EXAMPLES, MOST_SECONDS
from fedrec.networks.base import BYTES_A_SECOND, Megabits, UplinkConfig, UplinkNetwork


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
        deadline: Seconds after which a round goes on without the users who are not done (null: all are waited for).
        availability: The share of the rounds in which a device is there, drawn for each round by itself. The users of a
            round are chosen among those who are there; rankings ask everybody.
    """

    uplink: Megabits
    downlink: Megabits
    speed: Annotated[float, Gt(0), Le(MOST_EXAMPLES)]
    latency: Annotated[float, Ge(0), Le(MOST_SECONDS)]
    deadline: Annotated[float, Gt(0), Le(MOST_SECONDS)] | None
    # With a default: a run of old has none in its folder.
    availability: Annotated[float, Gt(0), Le(1)] = field(default=1.0, kw_only=True)


class SimulatedNetwork(UplinkNetwork):
    """Devices that exist by name only, each drawn from (seed, key), and the time that they take.

    Time is simulated as bytes are counted: for each user as a device of its own, whatever the layout.
    """

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

    @property
    def deadline(self) -> float:
        """Seconds after which a round goes on; infinity: all are waited for."""
        given: float | None = self.config.deadline
        return np.inf if given is None else given

    @property
    @override
    def availability(self) -> float:
        given: float = self.config.availability
        return given

    def seconds(
        self,
        keys: NDArray[np.uint64],
        down: NDArray[np.int64],
        up: NDArray[np.int64],
        work: NDArray[np.float64] | NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """How long each user takes, float64 [users]: latency, download, work and upload, one after the other.

        Args:
            keys: uint64 [users], their opaque keys.
            down: int64 [users], bytes that each downloads.
            up: int64 [users], bytes that each uploads.
            work: [users], training interactions, each as often as the user takes a local step on it.
        """
        devices = self.devices(keys)
        moved = down / (devices.downlink * BYTES_A_SECOND) + up / (devices.uplink * BYTES_A_SECOND)
        taken: NDArray[np.float64] = self.config.latency + moved + work / devices.speed
        return taken

    @override
    def uplink(self, keys: NDArray[np.uint64], grade: str = "") -> NDArray[np.float64]:
        return self.devices(keys).uplink
