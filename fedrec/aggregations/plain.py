"""Updates in the run's codec, or sums of them in floating point: the server sees what each node sends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedrec.aggregations.base import Aggregation
from fedrec.core.registry import MemberConfig, aggregations


@dataclass(frozen=True)
class PlainConfig(MemberConfig):
    """Nothing to choose."""

    name: Literal["plain"]


@aggregations.register("plain")
class PlainAggregation(Aggregation):
    """Neither a grid nor masks."""

    config_class = PlainConfig
