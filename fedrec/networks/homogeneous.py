"""Simulated devices that are all alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from fedrec.core.registry import networks
from fedrec.networks.simulated import Devices, SimulatedConfig, SimulatedNetwork


@dataclass(frozen=True)
class HomogeneousConfig(SimulatedConfig):
    """Configuration of `homogeneous`: the attributes of `SimulatedConfig`, the same for every device."""

    name: Literal["homogeneous"]


@networks.register("homogeneous")
class HomogeneousNetwork(SimulatedNetwork):
    """Every user has the same device: what `mobile` has in its middle, unless it is given otherwise."""

    config_class = HomogeneousConfig

    @override
    def devices(self, keys: NDArray[np.uint64]) -> Devices:
        one = np.ones(len(keys))
        return Devices(self.config.uplink * one, self.config.downlink * one, self.config.speed * one)
