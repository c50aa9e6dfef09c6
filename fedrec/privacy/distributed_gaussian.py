"""Distributed noise: each device adds a share, and only the sum of the shares is the noise that protects.

Each update is clipped by its norm over everything that travels and put on a public grid of whole numbers, cut off
towards zero, so that no update grows: the grid follows from `clip` and `bits`, never from what anybody trained. On the
grid each device adds Skellam noise, the difference of two Poisson numbers. A sum of Skellam numbers is one of the sum
of their variances, which a sum of discrete Gaussian numbers is not, so that the sum over devices is exactly the Skellam
mechanism (Agarwal, Kairouz and Liu, NeurIPS 2021, theorem 3.5: Renyi divergence, whole orders). The sum's noise is near
to normal noise, hence the name. Shares are sized for the fewest devices that may be left, `dropouts` fewer than were
chosen, and in a secure sum without those that may tell the server their share. With fewer than those nothing is
released: the round changes nothing.

Accounted without amplification: the server knows whom it chose, and neighbours know each other. What is protected is
the data of a user; that it takes part is known.

**What is protected is the sum, and only `aggregation=secagg` keeps the server from its parts.** Without it a node's own
sum, and an update of a lone device, reach the server with only their shares of noise, which hide next to nothing: a
deployment is refused then, and a simulation says what the noise costs. With it, who is left out on its device sends its
share of the noise all the same, and nobody tells what is needed to know a sum that has too few shares.

Sums are 64-bit numbers, and a device's own 32-bit ones; neither can wrap: numbers of `MOST_USERS` users and their noise
are below 2**62.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Le, Lt
from torch import Tensor
from typing_extensions import override

from fedrec.config.schema import RunConfig
from fedrec.core.bounds import MOST_ITEMS
from fedrec.core.errors import ConfigError
from fedrec.core.registry import MemberConfig, aggregations, privacies
from fedrec.core.tensors import Tensors
from fedrec.privacy.accounted import Accounted, AccountedConfig
from fedrec.secure.graph import at_most
from fedrec.stages.base import Release, Round, Shares
from fedrec.stages.contributions import Contributions
from fedrec.stages.draws import Draws
from fedrec.stages.noise import LARGEST_DEVIATION, skellam
from fedrec.stages.sums import Sum


@dataclass(frozen=True)
class DistributedGaussianConfig(AccountedConfig):
    """Configuration of `distributed_gaussian`.

    Attributes:
        bits: The clip is at most 2**bits points of the grid, and more than half of that.
        dropouts: Share of the chosen users who may be lost, with the rest still protected; in a secure sum beside those
            of the nodes that it reckons with as corrupt, which tell the server their noise.
        drawn: `devices`: each device draws its share. `sum`: all shares of a round are drawn at once, as their sum,
            which has the same distribution; for simulations of many users, whose draws would take hours.
        survivors: Users whose shares are enough together; a round of fewer changes nothing (null: those chosen of the
            users of the data, less `dropouts` and the share of nodes that may be corrupt).
    """

    name: Literal["distributed_gaussian"]
    bits: Annotated[int, Ge(4), Le(20)]
    dropouts: Annotated[float, Ge(0), Lt(1)]
    drawn: Literal["devices", "sum"]
    survivors: Annotated[int, Ge(1), Le(MOST_ITEMS)] | None


class SkellamShares(Shares):
    """Skellam noise of one variance on every number, a share for each device."""

    def __init__(self, units_per_one: float, most_units: float, variance: float, *, at_once: bool) -> None:
        self.units_per_one = units_per_one
        self.most_units = most_units
        self.variance = variance
        self.at_once = at_once

    @override
    def of(self, units: Tensors, user: int, draws: Draws) -> Tensors:
        if self.at_once:
            return {name: torch.zeros_like(tensor) for name, tensor in units.items()}
        return self.summed(units, draws.once(units, "share", user, repr(self.variance)), 1)

    def summed(self, units: Mapping[str, Tensor], key: bytes, devices: int) -> Tensors:
        """The sum of the shares of so many devices."""
        variance = devices * self.variance
        return {name: skellam(key + name.encode(), variance, *tensor.shape) for name, tensor in units.items()}


@privacies.register("distributed_gaussian")
class DistributedGaussian(Accounted):
    """A clip, a public grid and a share of the noise on devices."""

    config_class = DistributedGaussianConfig
    config: DistributedGaussianConfig
    reads = "norms"
    sampling = ("fixed", "the shares of the noise are sized for a number of users that is known")
    unit = "user, its data or none of it; who takes part is known"
    caveat = (
        "The sum over all chosen users is what is protected. Without aggregation=secagg nothing keeps the server from "
        "the sums of single nodes, which have only their shares of the noise: a simulation shows what the noise costs, "
        "and a deployment is refused."
    )
    _masked_caveat = (
        "The sum over all chosen users is what is protected, and all that a server which follows the protocol sees of "
        "their updates. Who takes part, how many users of each node, and the metrics of rankings it sees as well; what "
        "one that lies can do is in docs/privacy.md."
    )
    rules: ClassVar[dict[str, Any]] = {**Accounted.rules, "max_row_norm": None}

    @classmethod
    @override
    def caveat_in(cls, config: RunConfig) -> str | None:
        return cls._masked_caveat if config.aggregation.name == "secagg" else cls.caveat

    @classmethod
    @override
    def problems(cls, config: RunConfig) -> list[str]:
        found = []
        masked, drawn = config.aggregation.name == "secagg", getattr(config.privacy, "drawn", None)
        if config.runtime == "deployment" and not masked:
            found.append(
                "privacy=distributed_gaussian: it protects a sum whose parts the server cannot see, and with "
                f"aggregation={config.aggregation.name} it sees them; take aggregation=secagg, or "
                "privacy=central_gaussian (the server is trusted) or local_gaussian"
            )
        if config.runtime == "deployment" and drawn == "sum":
            found.append(
                "privacy.drawn=sum: the noise would be the server's, which is for simulations; give "
                "privacy.drawn=devices"
            )
        return found + super().problems(config)

    @classmethod
    @override
    def settled(cls, config: RunConfig, users: int) -> MemberConfig:
        settled: Any = super().settled(config, users)
        chosen = max(1, int(config.federation.fraction * users + 0.5))
        if users > 1 and (settled.survivors or 0) > chosen:  # one: who asks does not know how many there are
            raise ConfigError(
                [
                    f"privacy.survivors={settled.survivors}: {chosen} of {users} users are chosen for a round, so that "
                    f"none would ever release anything; give at most {chosen}, or a larger federation.fraction"
                ]
            )
        if settled.survivors is None:
            lost = settled.dropouts + cls._telling(config)
            settled = dataclasses.replace(settled, survivors=max(1, math.floor((1 - lost) * chosen)))
        made = cls(settled)
        if (deviation := made.multiplier * made.most_units) > LARGEST_DEVIATION / 2:
            raise ConfigError(
                [
                    f"privacy.bits={settled.bits}: the noise on the sum has a standard deviation of {deviation:,.0f} "
                    f"points of the grid, at most {LARGEST_DEVIATION / 2:,.0f} can be drawn; give fewer bits"
                ]
            )
        found: MemberConfig = settled
        return found

    @staticmethod
    def _telling(config: RunConfig) -> float:
        """The share of users whose noise the server may know, on nodes that secure sums reckon with as corrupt."""
        masks = aggregations.get(config.aggregation.name)(config.aggregation).masks
        if masks is None or config.runtime == "deployment":
            return masks.corrupt if masks else 0.0
        return at_most(masks.corrupt, config.simulation.nodes) / config.simulation.nodes

    @property
    def units_per_one(self) -> float:
        """Points of the grid in a distance of 1."""
        return 2.0 ** (self.config.bits - math.ceil(math.log2(self.config.clip)))

    @property
    def most_units(self) -> float:
        """The clip, in points of the grid."""
        return self.config.clip * self.units_per_one

    @property
    @override
    def shares(self) -> SkellamShares:
        if self.config.survivors is None:
            raise ValueError("the configuration was not settled: the number of survivors is not known")
        variance = (self.multiplier * self.most_units) ** 2 / self.config.survivors
        at_once = self.config.drawn == "sum"
        return SkellamShares(self.units_per_one, self.most_units, variance, at_once=at_once)

    @property
    @override
    def survivors(self) -> int:
        return self.config.survivors or 0

    @property
    @override
    def noise_on_devices(self) -> float:
        shares = self.shares
        return 0.0 if shares.at_once else math.sqrt(shares.variance) / shares.units_per_one

    @property
    @override
    def hides_rows(self) -> bool:
        return True

    @property
    @override
    def noises_sum(self) -> bool:
        return self.config.drawn == "sum"

    @override
    def on_devices(self, given: Contributions, draws: Draws) -> Contributions:
        return given.clipped(self.config.clip).weighing(torch.ones_like(given.weight))

    @override
    def on_sum(self, total: Sum, about: Round) -> Sum:
        devices, shares = round(total.denominator), self.shares
        if self.config.survivors is None or devices < self.config.survivors:
            return total.over(0.0)  # too little noise: nothing is released, and nothing changes
        if not shares.at_once:
            return total
        noise = shares.summed(total.units, about.draws.once(total.units, repr(shares.variance)), devices)
        return dataclasses.replace(total, units={name: units + noise[name] for name, units in total.units.items()})

    @override
    def release(self, multiplier: float) -> Release:
        return Release("skellam", multiplier, in_secret=False, grid=self.most_units)
