"""Laplace noise of each device, for an update clipped by the sum of its sizes (`fedrec.privacy.local`).

The local experiment of the FedPEFT paper (arXiv 2512.13734), with the sensitivity that such noise hides: one update is
differentially private with delta = 0 and epsilon = 1 / `noise_multiplier`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedrec.core.registry import privacies
from fedrec.privacy.accounted import LAPLACE, AccountedConfig
from fedrec.privacy.local import Local


@dataclass(frozen=True)
class LocalLaplaceConfig(AccountedConfig):
    """Configuration of `local_laplace`."""

    name: Literal["local_laplace"]


@privacies.register("local_laplace")
class LocalLaplace(Local):
    """A clip of the L1 norm, and Laplace noise."""

    config_class = LocalLaplaceConfig
    kind = LAPLACE
