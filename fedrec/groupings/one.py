"""No groups: one model for everybody."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from fedrec.core.registry import MemberConfig, groupings
from fedrec.groupings.base import EVERYBODY, Grouping, Users


@dataclass(frozen=True)
class OneConfig(MemberConfig):
    """Nothing to choose."""

    name: Literal["one"]


@groupings.register("one")
class OneGroup(Grouping):
    """Everybody in one group."""

    config_class = OneConfig

    @property
    @override
    def names(self) -> tuple[str, ...]:
        return (EVERYBODY,)

    @override
    def assign(self, users: Users) -> NDArray[np.int64]:
        return np.zeros(len(users.keys), dtype=np.int64)
