"""Devices that are there: each node says by a grade how fast they send."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from annotated_types import MaxLen, MinLen
from numpy.typing import NDArray
from pydantic import Field, Strict
from typing_extensions import override

from fedrec.config.schema import RunConfig
from fedrec.core.bounds import GRADES, MOST_GRADES
from fedrec.core.registry import networks
from fedrec.networks.base import Megabits, UplinkConfig, UplinkNetwork


@dataclass(frozen=True)
class GradesConfig(UplinkConfig):
    """Configuration of `grades`.

    Attributes:
        grades: The names that nodes may give: `grade='phone'` in the node configuration.
        uplinks: What a device of each of these grades sends in a second, in megabits.
        otherwise: What one sends of whose node says none of them.
    """

    name: Literal["grades"]
    grades: Annotated[
        tuple[Annotated[str, Field(pattern=rf"^{GRADES}\z")], ...], Strict(False), MinLen(1), MaxLen(MOST_GRADES)
    ]
    uplinks: Annotated[tuple[Megabits, ...], Strict(False), MinLen(1), MaxLen(MOST_GRADES)]
    otherwise: Megabits


@networks.register("grades")
class GradesNetwork(UplinkNetwork):
    """The uplink that the run gives to a grade, for all users of a node that says it."""

    config_class = GradesConfig

    @classmethod
    def problems(cls, config: RunConfig) -> list[str]:
        """Grades that nobody can say, that are not told apart, or that change nothing."""
        given: GradesConfig = config.network  # type: ignore[assignment]
        found = []
        if config.runtime == "simulation":
            found.append(
                "network=grades: simulated nodes say nothing of their devices: take network=mobile, or "
                "runtime=deployment"
            )
        if len(set(given.grades)) < len(given.grades):
            found.append(f"network.grades={list(given.grades)}: a grade is named twice; give each once")
        if len(given.uplinks) != len(given.grades):
            found.append(
                f"network.uplinks={list(given.uplinks)}: expected one for each of the {len(given.grades)} grades "
                f"{', '.join(given.grades)}, got {len(given.uplinks)}"
            )
        if given.reply_bytes is None and given.reply_seconds is None:
            found.append(
                "network=grades: without a budget for replies a grade changes nothing; give network.reply_seconds or "
                "network.reply_bytes"
            )
        return found

    @override
    def uplink(self, keys: NDArray[np.uint64], grade: str = "") -> NDArray[np.float64]:
        uplinks = dict(zip(self.config.grades, self.config.uplinks, strict=True))
        return np.full(len(keys), uplinks.get(grade, self.config.otherwise))
