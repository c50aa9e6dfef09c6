"""Whole tables, with every message."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedrec.core.registry import MemberConfig, downlinks
from fedrec.downlinks.base import Downlink


@dataclass(frozen=True)
class DenseConfig(MemberConfig):
    """Configuration of `dense`."""

    name: Literal["dense"]


@downlinks.register("dense")
class DenseDownlink(Downlink):
    """No steps: what devices hold from earlier rounds does not matter."""

    config_class = DenseConfig
    every = 0
