"""What all mechanisms with an account have in common: a budget, a clip, noise, and rules that nobody's data move."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Gt, Le, Lt
from typing_extensions import override

from fedrec.config.schema import RunConfig
from fedrec.core.bounds import LARGEST_NORM, LARGEST_RATE
from fedrec.core.registry import MemberConfig, backbones
from fedrec.privacy.base import PrivacyMechanism
from fedrec.stages.base import Release
from fedrec.stages.contributions import Contributions
from fedrec.stages.noise import laplace, normal
from fedrec.stages.sums import Standard


@dataclass(frozen=True)
class Noise:
    """A kind of noise, and the clip whose norm it hides.

    Attributes:
        name: In the ledger, and for the accountant.
        clip: Shortens updates to a norm of at most a bound.
        standard: Draws it, at the scale 1.
        deviation: Its standard deviation at that scale.
    """

    name: str
    clip: Callable[[Contributions, float], Contributions]
    standard: Standard
    deviation: float


GAUSSIAN = Noise("gaussian", Contributions.clipped, normal, 1.0)
LAPLACE = Noise("laplace", Contributions.clipped_sums, laplace, 2.0**0.5)


@dataclass(frozen=True)
class AccountedConfig(MemberConfig):
    """Configuration of a mechanism with an account.

    Attributes:
        epsilon: Budget of the whole run, at the level of a user (null: none, the noise is as given).
        delta: Of the same promise; well below one in the number of users.
        clip: The largest norm of a user's update.
        noise_multiplier: Scale of the noise, as a multiple of the most that one user can change what is noised (null:
            as much as the budget wants over all rounds).
    """

    epsilon: Annotated[float, Gt(0), Le(LARGEST_RATE)] | None
    delta: Annotated[float, Gt(0), Lt(1)]
    clip: Annotated[float, Gt(0), Le(LARGEST_NORM)]
    noise_multiplier: Annotated[float, Gt(0), Le(LARGEST_RATE)] | None


class Accounted(PrivacyMechanism):
    """A mechanism whose every release is in the run's ledger before it is made."""

    config: Any
    unit: ClassVar[str]
    """Whom the promise is about: what two neighbouring federations differ in."""

    rules: ClassVar[dict[str, Any]] = {"over_sampling": 0.0, "repeats": 0, "max_failures": 1.0, "min_users": 0}
    """What the section `federation` has to say, for what happens to a round must not depend on who was drawn for it, or
    on who is quick; and nobody is asked twice."""

    sampling: ClassVar[tuple[str, str]] = ("", "")
    """The only cohort that the account is right for, and why; empty if it is right for any."""

    @classmethod
    def problems(cls, config: RunConfig) -> list[str]:
        """What cannot be accounted, or not be done, one line each."""
        privacy: Any = config.privacy
        name, rules = privacy.name, config.federation
        found = []
        if privacy.epsilon is None and privacy.noise_multiplier is None:
            found.append("privacy.epsilon=null and privacy.noise_multiplier=null: give one of them, or both")
        if config.grouping.name != "one":
            found.append(
                f"grouping={config.grouping.name}: privacy={name} is accounted for users of one model, and says "
                "nothing of what a group tells; take grouping=one"
            )
        cohort, reason = cls.sampling
        if cohort and config.cohort.name != cohort:
            found.append(
                f"cohort={config.cohort.name}: with privacy={name} {reason}; leave it out, or give cohort={cohort}"
            )
        for key, only in cls.rules.items():
            if (value := getattr(rules, key)) != only:
                shown = "null" if only is None else only
                found.append(
                    f"federation.{key}={value}: with privacy={name} no rule may depend on who was drawn, or on what "
                    f"was sent; leave it out, or give federation.{key}={shown}"
                )
        if rules.node_limits(simulated=config.runtime == "simulation").share != 1.0:
            found.append(
                f"federation.max_node_share={rules.max_node_share}: with privacy={name} what a user weighs may not "
                "depend on who was drawn; leave it out, or give federation.max_node_share=1.0"
            )
        backbone: Any = backbones.get(config.backbone.name)(config.backbone, config.base_table.dim)
        if backbone.item_counting is not None:
            found.append(
                f"backbone={config.backbone.name}: its users report items apart from training, which is not in the "
                f"account of privacy={name}; take another backbone"
            )
        return found

    @classmethod
    @override
    def settled(cls, config: RunConfig, users: int) -> MemberConfig:
        from fedrec.privacy.accounting import calibrated

        privacy: Any = config.privacy
        strategy: Any = config.strategy
        if privacy.noise_multiplier is not None:
            return config.privacy
        event = cls(privacy).release(1.0)
        fraction = config.federation.fraction
        multiplier = calibrated(event, strategy.rounds, fraction, privacy.epsilon, privacy.delta)
        found: MemberConfig = dataclasses.replace(privacy, noise_multiplier=multiplier)
        return found

    @override
    def event(self, round: int) -> Release | None:
        multiplier = self.config.noise_multiplier
        return None if multiplier is None else self.release(multiplier)

    @abstractmethod
    def release(self, multiplier: float) -> Release:
        """What a round gives away, for the accountant, with a noise multiplier."""

    @property
    @override
    def max_norm(self) -> float:
        found: float = self.config.clip
        return found

    @property
    @override
    def tells(self) -> bool:
        return False

    @property
    def multiplier(self) -> float:
        """The noise multiplier. Raises ValueError if the configuration was not settled."""
        found: float | None = self.config.noise_multiplier
        if found is None:
            raise ValueError("the configuration was not settled: the noise multiplier is not known")
        return found
