"""Central differential privacy: a trusted server adds normal noise to the sum of the users' clipped updates.

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
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from typing_extensions import override

from fedrec.config.schema import RunConfig
from fedrec.core.bounds import LARGEST_NORM, LARGEST_RATE, MOST_ITEMS
from fedrec.core.registry import MemberConfig, backbones, privacies
from fedrec.privacy.base import PrivacyMechanism
from fedrec.stages.base import Release, Round
from fedrec.stages.contributions import Contributions
from fedrec.stages.draws import Draws
from fedrec.stages.sums import Sum


@dataclass(frozen=True)
class CentralGaussianConfig(MemberConfig):
    """Configuration of `central_gaussian`.

    Attributes:
        epsilon: Budget of the whole run, at the level of a user, add or remove one (null: none, the noise is as given).
        delta: Of the same promise; well below one in the number of users.
        clip: The largest norm of a user's update.
        noise_multiplier: Standard deviation of the noise on the sum, as a multiple of `clip` (null: as much as the
            budget wants over all rounds).
        population: Users of the federation, a public number (null: in a simulation those of its data).
    """

    name: Literal["central_gaussian"]
    epsilon: Annotated[float, Gt(0), Le(LARGEST_RATE)] | None
    delta: Annotated[float, Gt(0), Lt(1)]
    clip: Annotated[float, Gt(0), Le(LARGEST_NORM)]
    noise_multiplier: Annotated[float, Gt(0), Le(LARGEST_RATE)] | None
    population: Annotated[int, Ge(1), Le(MOST_ITEMS)] | None


@privacies.register("central_gaussian")
class CentralGaussian(PrivacyMechanism):
    """A clip on devices; noise and a public denominator on the server."""

    config_class = CentralGaussianConfig
    config: CentralGaussianConfig
    reads = "norms"

    @classmethod
    def problems(cls, config: RunConfig) -> list[str]:
        """What cannot be accounted, or not be done, one line each."""
        privacy, rules = config.privacy, config.federation
        assert isinstance(privacy, CentralGaussianConfig)
        found = []
        if privacy.epsilon is None and privacy.noise_multiplier is None:
            found.append("privacy.epsilon=null and privacy.noise_multiplier=null: give one of them, or both")
        if privacy.population is None and config.runtime == "deployment":
            found.append("privacy.population=null: with runtime=deployment nobody counts the users; give their number")
        if config.cohort.name != "poisson":
            found.append(
                f"cohort={config.cohort.name}: privacy=central_gaussian is accounted for users who are drawn by "
                "themselves, in secret; leave it out, or give cohort=poisson"
            )
        if config.grouping.name != "one":
            found.append(
                f"grouping={config.grouping.name}: privacy=central_gaussian divides by the expected number of users of "
                "a whole cohort, and says nothing of groups; take grouping=one"
            )
        # What happens to a round must not depend on who was drawn for it, or on who is quick.
        for key, only in (("over_sampling", 0.0), ("repeats", 0), ("max_failures", 1.0), ("min_users", 0)):
            if (value := getattr(rules, key)) != only:
                found.append(
                    f"federation.{key}={value}: with privacy=central_gaussian no rule may depend on who was drawn; "
                    f"leave it out, or give federation.{key}={only}"
                )
        if rules.node_limits(simulated=config.runtime == "simulation").share != 1.0:
            found.append(
                f"federation.max_node_share={rules.max_node_share}: with privacy=central_gaussian what a user weighs "
                "may not depend on who was drawn; leave it out, or give federation.max_node_share=1.0"
            )
        backbone: Any = backbones.get(config.backbone.name)(config.backbone, config.base_table.dim)
        if backbone.item_counting is not None:
            found.append(
                f"backbone={config.backbone.name}: its users report items apart from training, which is not in the "
                "account of privacy=central_gaussian; take another backbone"
            )
        return found

    @classmethod
    @override
    def settled(cls, config: RunConfig, users: int) -> MemberConfig:
        from fedrec.privacy.accounting import calibrated

        privacy: Any = config.privacy
        strategy: Any = config.strategy
        multiplier = privacy.noise_multiplier
        if multiplier is None:
            multiplier = calibrated(strategy.rounds, config.federation.fraction, privacy.epsilon, privacy.delta)
        population = users if privacy.population is None else privacy.population
        found: MemberConfig = dataclasses.replace(privacy, noise_multiplier=multiplier, population=population)
        return found

    @property
    @override
    def max_norm(self) -> float:
        return self.config.clip

    @property
    @override
    def noises_sum(self) -> bool:
        return True

    @property
    @override
    def tells(self) -> bool:
        return False

    @override
    def on_devices(self, given: Contributions, draws: Draws) -> Contributions:
        return given.clipped(self.config.clip).weighing(torch.ones_like(given.weight))

    @override
    def on_sum(self, total: Sum, about: Round) -> Sum:
        multiplier, population = self.config.noise_multiplier, self.config.population
        if multiplier is None or population is None:
            raise ValueError("the configuration was not settled: noise multiplier and population are not known")
        return total.with_normal_noise(multiplier * self.config.clip, about.draws).over(about.fraction * population)

    @override
    def event(self, round: int) -> Release | None:
        multiplier = self.config.noise_multiplier
        return None if multiplier is None else Release("gaussian", multiplier)
