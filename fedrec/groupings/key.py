"""Groups by chance: a public function of the user's key and the run's seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Le
from numpy.typing import NDArray
from typing_extensions import override

from fedrec.core.bounds import MOST_GROUPS
from fedrec.core.registry import MemberConfig, groupings
from fedrec.core.rng import counter_bits, derive
from fedrec.groupings.base import Grouping, Users


@dataclass(frozen=True)
class KeyConfig(MemberConfig):
    """Configuration of `key`.

    Attributes:
        groups: How many there are; each has about as many users as the others.
    """

    name: Literal["key"]
    groups: Annotated[int, Ge(2), Le(MOST_GROUPS)]


@groupings.register("key")
class GroupsByKey(Grouping):
    """Each user in the group that is drawn from (seed, key): what groups that have nothing in common would reach."""

    config_class = KeyConfig

    @property
    @override
    def names(self) -> tuple[str, ...]:
        return tuple(str(number) for number in range(self.config.groups))

    @override
    def assign(self, users: Users) -> NDArray[np.int64]:
        drawn = counter_bits(derive(self.seed, "group"), users.keys)
        return (drawn % np.uint64(self.config.groups)).astype(np.int64)
