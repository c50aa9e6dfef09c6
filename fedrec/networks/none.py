"""No network: nothing is known of the devices, and no time passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedrec.core.registry import MemberConfig, networks
from fedrec.networks.base import Network


@dataclass(frozen=True)
class NoneConfig(MemberConfig):
    """Nothing to choose."""

    name: Literal["none"]


@networks.register("none")
class NoNetwork(Network):
    """Replies of any length, and no clock."""

    config_class = NoneConfig
