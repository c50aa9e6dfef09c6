"""Whole numbers on one public grid, which the server sees: what `secagg` adds up, without its masks.

The grid follows from how far a user may move a row (`federation.max_row_norm`) and from `bits`, never from what anybody
trained; numbers are rounded to it at random, so that a mean keeps no error. A mechanism of privacy that adds its noise
on a grid has one of its own, and `bits` there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Ge, Le
from typing_extensions import override

from fedrec.aggregations.base import Aggregation
from fedrec.core.registry import MemberConfig, aggregations, backbones, optims, privacies

if TYPE_CHECKING:
    from fedrec.config.schema import RunConfig


@dataclass(frozen=True)
class GridConfig(MemberConfig):
    """Configuration of `grid`.

    Attributes:
        bits: The largest number of a user, times its weight, has at most 2**bits points of the grid, and more than half
            of that.
    """

    name: Literal["grid"]
    bits: Annotated[int, Ge(4), Le(20)]


@aggregations.register("grid")
class GridAggregation(Aggregation):
    """A grid, and no masks."""

    config_class: ClassVar[type[MemberConfig]] = GridConfig

    @property
    @override
    def bits(self) -> int | None:
        found: int = self.config.bits
        return found

    @classmethod
    def problems(cls, config: RunConfig) -> list[str]:
        """What cannot be added up in whole numbers on one public grid, one line each."""
        from fedrec.privacy.local import Local

        name, found = f"aggregation={config.aggregation.name}", []
        if config.uplink.name != "dense":
            found.append(
                f"{name}: uplink={config.uplink.name} sends lists of rows, or a few values and which row takes which, "
                "and these are no tensors of one layout that can be added up; give uplink=dense"
            )
        member = privacies.get(config.privacy.name)
        privacy = member(config.privacy)
        if privacy.noises_sum:
            found.append(
                f"{name}: with privacy={config.privacy.name} the server draws the noise, from a sum on a grid of its "
                "own; take privacy=distributed_gaussian with privacy.drawn=devices, or aggregation=plain"
            )
        elif issubclass(member, Local):
            found.append(
                f"{name}: with privacy={config.privacy.name} each update leaves its device noised by itself, and "
                "nothing bounds it; take privacy=distributed_gaussian, or aggregation=plain"
            )
        elif not privacy.hides_rows:  # those that do clip, and have a grid
            found += cls._unbounded(config)
        return found

    @staticmethod
    def _unbounded(config: RunConfig) -> list[str]:
        """What keeps a run's numbers from a grid: that nothing bounds them."""
        limit = config.federation.max_row_norm
        backbone = backbones.get(config.backbone.name)(config.backbone, config.base_table.dim)
        anywhere = math.isinf(optims.get(config.optim.name)(config.optim, backbone.advice).row_reach(1))
        if limit is None or (limit == "auto" and anywhere and config.runtime == "simulation"):
            shown = "null" if limit is None else limit
            return [
                f"aggregation={config.aggregation.name}: a public grid needs a bound on users' numbers, and with "
                f"federation.max_row_norm={shown} and optim={config.optim.name} there is none; give "
                "federation.max_row_norm=10, as in a deployment, or how far a user may move a row"
            ]
        return []
