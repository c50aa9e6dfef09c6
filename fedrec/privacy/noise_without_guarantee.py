"""Normal noise on the average, as the code that was released with the FedPEFT paper has it: it promises nothing.

Updates are not clipped, so that one user may change the average by any amount, and no noise hides that: whatever
`scale`, epsilon is infinite. Weights and losses are told as without any privacy. For comparison with mechanisms that
keep a promise, and with figures that were made so.

The noise is a function of the server's secret root and the round: as nothing is promised, a repeated round may have it
again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Gt, Le
from typing_extensions import override

from fedrec.core.registry import MemberConfig, privacies
from fedrec.privacy.base import PrivacyMechanism
from fedrec.stages.base import Round
from fedrec.stages.noise import normal
from fedrec.stages.sums import Sum


@dataclass(frozen=True)
class NoiseWithoutGuaranteeConfig(MemberConfig):
    """Configuration of `noise_without_guarantee`.

    Attributes:
        scale: Standard deviation of the noise on every number of the average.
    """

    name: Literal["noise_without_guarantee"]
    scale: Annotated[float, Gt(0), Le(100)]


@privacies.register("noise_without_guarantee")
class NoiseWithoutGuarantee(PrivacyMechanism):
    """Noise on the average, and no bound on what it has to hide."""

    config_class = NoiseWithoutGuaranteeConfig
    config: NoiseWithoutGuaranteeConfig
    promises = False
    caveat = (
        "Noise without a guarantee: updates are not clipped, so that no amount of noise hides a user, and epsilon is "
        "infinite. It is there for comparison."
    )

    @override
    def on_sum(self, total: Sum, about: Round) -> Sum:
        key = about.draws.again("noise without guarantee").to_bytes(8, "little")
        scale = self.config.scale * total.denominator
        noise = {name: scale * normal(key + name.encode(), *units.shape) for name, units in total.units.items()}
        return total.plus(noise)
