"""Simulated phones, with a long tail of slow ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Le
from numpy.typing import NDArray
from typing_extensions import override

from fedrec.core.registry import networks
from fedrec.core.rng import counter_normal, derive
from fedrec.networks.simulated import Devices, SimulatedConfig, SimulatedNetwork

_WIDEST = 5.0
"""Of a bell curve of logarithms: a factor of e^5 a standard deviation."""


@dataclass(frozen=True)
class MobileConfig(SimulatedConfig):
    """Configuration of `mobile`: of what `SimulatedConfig` names, but for the latency, the medians.

    Attributes:
        sigma: Standard deviation of the natural logarithm of a bandwidth.
        speed_sigma: The same of the speed.
    """

    name: Literal["mobile"]
    sigma: Annotated[float, Ge(0), Le(_WIDEST)]
    speed_sigma: Annotated[float, Ge(0), Le(_WIDEST)]


@networks.register("mobile")
class MobileNetwork(SimulatedNetwork):
    """Log-normal bandwidths and speeds: uplink = median * exp(sigma * z), with z standard normal from (seed, key).

    One z sets both bandwidths of a device, another its speed. The defaults are medians of 5 megabits a second up
    and 20 down with sigma = 1. The means are then 8.2 and 33.0, of the size of those that Ookla's Speedtest Global
    Index had for mobile networks in September 2020 (11.22 and 35.96), and one device in a hundred has a tenth of the
    median or less. A tail like this is what the measurements of phones have from which FedScale (Lai et al., ICML 2022,
    arXiv 2105.11367) takes its devices (MobiPerf). The speed is an assumption: 100,000 interactions a
    second, of the order of a tenth of what the cohort engine comes to on one core of a server (docs/performance.md),
    with sigma = 0.5, so that the slowest and the fastest of a hundred devices differ by a factor of ten.
    """

    config_class = MobileConfig

    @override
    def devices(self, keys: NDArray[np.uint64]) -> Devices:
        config = self.config
        bandwidth = np.exp(config.sigma * counter_normal(derive(self.seed, "network", "bandwidth"), keys))
        speed = np.exp(config.speed_sigma * counter_normal(derive(self.seed, "network", "speed"), keys))
        return Devices(config.uplink * bandwidth, config.downlink * bandwidth, config.speed * speed)
