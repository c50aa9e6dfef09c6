"""Normal noise of a trusted server, for updates clipped by their Euclidean norm (`fedrec.privacy.central`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedrec.core.registry import privacies
from fedrec.privacy.accounted import GAUSSIAN
from fedrec.privacy.central import Central, CentralConfig


@dataclass(frozen=True)
class CentralGaussianConfig(CentralConfig):
    """Configuration of `central_gaussian`."""

    name: Literal["central_gaussian"]


@privacies.register("central_gaussian")
class CentralGaussian(Central):
    """A clip of the Euclidean norm, and normal noise."""

    config_class = CentralGaussianConfig
    kind = GAUSSIAN
