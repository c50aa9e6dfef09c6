"""Central differential privacy: a trusted server adds noise to the sum of the users' clipped updates.

Each update is clipped by its norm over everything that travels (McMahan et al., ICLR 2018). All weigh the same, so a
user changes the sum by at most `clip`; the sum is divided by the number of users that is expected, a public number; a
round that drew nobody is noised as any other. Users are drawn by themselves from the server's secret
(`cohort=poisson`).

What is released is the model after each round. The noise is enough for the budget `epsilon` over the rounds of the plan
(`fedrec.privacy.accounting`), every release is written into the run's ledger before it is made, and a run ends before
it would overspend.

**Who is trusted**: the server, which sees each node's un-noised sum, and a lone device's update, and could lie about
its draws. Nothing here protects from it. Devices send no losses and no counts of items beside their updates. The number
of users in a sum is for the server alone; a metrics file that is published with it tells more than the account says.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Le
from typing_extensions import override

from fedrec.config.schema import RunConfig
from fedrec.core.bounds import MOST_ITEMS
from fedrec.core.registry import MemberConfig
from fedrec.privacy.accounted import Accounted, AccountedConfig, Noise
from fedrec.stages.base import Release, Round
from fedrec.stages.contributions import Contributions
from fedrec.stages.draws import Draws
from fedrec.stages.sums import Sum


@dataclass(frozen=True)
class CentralConfig(AccountedConfig):
    """Configuration of a mechanism of a trusted server.

    Attributes:
        population: Users of the federation, a public number (null: in a simulation those of its data).
    """

    population: Annotated[int, Ge(1), Le(MOST_ITEMS)] | None


class Central(Accounted):
    """A clip on devices; noise and a public denominator on the server."""

    config: CentralConfig
    reads = "norms"
    unit = "user, add or remove one"
    kind: ClassVar[Noise]
    sampling = ("poisson", "the account is of users who are drawn by themselves, in secret")

    @classmethod
    @override
    def problems(cls, config: RunConfig) -> list[str]:
        privacy: Any = config.privacy
        found = []
        if privacy.population is None and config.runtime == "deployment":
            found.append("privacy.population=null: with runtime=deployment nobody counts the users; give their number")
        return found + super().problems(config)

    @classmethod
    @override
    def settled(cls, config: RunConfig, users: int) -> MemberConfig:
        settled: Any = super().settled(config, users)
        population = users if settled.population is None else settled.population
        found: MemberConfig = dataclasses.replace(settled, population=population)
        return found

    @property
    @override
    def noises_sum(self) -> bool:
        return True

    @override
    def on_devices(self, given: Contributions, draws: Draws) -> Contributions:
        return self.kind.clip(given, self.config.clip).weighing(torch.ones_like(given.weight))

    @override
    def on_sum(self, total: Sum, about: Round) -> Sum:
        population = self.config.population
        if population is None:
            raise ValueError("the configuration was not settled: the population is not known")
        noised = total.with_noise(self.multiplier * self.config.clip, about.draws, self.kind.standard)
        return noised.over(about.fraction * population)

    @override
    def release(self, multiplier: float) -> Release:
        return Release(self.kind.name, multiplier)
