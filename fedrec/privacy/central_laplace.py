"""Laplace noise of a trusted server, for updates clipped by the sum of their sizes (`fedrec.privacy.central`).

The noise of the experiments in the FedPEFT paper (arXiv 2512.13734), whose clip and scale are in no public copy: here
with the sensitivity that such noise hides. Without sampling, a round is differentially private with delta = 0 and
epsilon = 1 / `noise_multiplier`. A model of many numbers has large such norms, and more noise than normal noise of the
same epsilon (docs/privacy.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedrec.core.registry import privacies
from fedrec.privacy.accounted import LAPLACE
from fedrec.privacy.central import Central, CentralConfig


@dataclass(frozen=True)
class CentralLaplaceConfig(CentralConfig):
    """Configuration of `central_laplace`."""

    name: Literal["central_laplace"]


@privacies.register("central_laplace")
class CentralLaplace(Central):
    """A clip of the L1 norm, and Laplace noise."""

    config_class = CentralLaplaceConfig
    kind = LAPLACE
