"""Normal noise of each device, for an update clipped by its Euclidean norm (`fedrec.privacy.local`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedrec.core.registry import privacies
from fedrec.privacy.accounted import GAUSSIAN, AccountedConfig
from fedrec.privacy.local import Local


@dataclass(frozen=True)
class LocalGaussianConfig(AccountedConfig):
    """Configuration of `local_gaussian`."""

    name: Literal["local_gaussian"]


@privacies.register("local_gaussian")
class LocalGaussian(Local):
    """A clip of the Euclidean norm, and normal noise."""

    config_class = LocalGaussianConfig
    kind = GAUSSIAN
