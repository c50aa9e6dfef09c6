"""Groups by the texts of what users like: each in the group of the kind of items of which it has most.

Source: the clients of FELLRec (arXiv 2402.09959) are clusters of users; its code clusters vectors of users that were
trained with all data in one place. Here the server clusters the items, by their public texts, and a device says for
each of its users which cluster most of the items are from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Le
from numpy.typing import NDArray
from typing_extensions import override

from fedrec.config.schema import RunConfig
from fedrec.core.bounds import MOST_GROUPS
from fedrec.core.registry import MemberConfig, groupings
from fedrec.groupings.base import Grouping, Users


@dataclass(frozen=True)
class CentroidsConfig(MemberConfig):
    """Configuration of `centroids`.

    Attributes:
        groups: How many there are, one for each centroid of the item vectors. Some may have few users, or none.
    """

    name: Literal["centroids"]
    groups: Annotated[int, Ge(2), Le(MOST_GROUPS)]


@groupings.register("centroids")
class GroupsByCentroids(Grouping):
    """Each user in the group of the centroid that most of its training items are nearest to.

    Of equally many the first; that is also the group of a user without items.
    """

    config_class = CentroidsConfig

    @classmethod
    def problems(cls, config: RunConfig) -> list[str]:
        """Item vectors that say nothing of items."""
        if config.base_table.start == "text":
            return []
        return [
            f"grouping=centroids goes by the texts of items, and with base_table.start={config.base_table.start} their "
            "vectors have none: take base_table.start=text, or grouping=key"
        ]

    @property
    @override
    def names(self) -> tuple[str, ...]:
        return tuple(str(number) for number in range(self.config.groups))

    @property
    @override
    def labels(self) -> int:
        groups: int = self.config.groups
        return groups

    @override
    def assign(self, users: Users) -> NDArray[np.int64]:
        found: NDArray[np.int64] = self._votes(users).argmax(axis=1)
        return found

    @override
    def nearest(self, users: Users, here: Sequence[int]) -> NDArray[np.int64]:
        """Among `here` the group of which most items are."""
        groups: NDArray[np.int64] = np.asarray(here, dtype=np.int64)
        found: NDArray[np.int64] = groups[self._votes(users)[:, groups].argmax(axis=1)]
        return found

    def _votes(self, users: Users) -> NDArray[np.int64]:
        """int64 [users, groups]: how many of each user's items are of each group."""
        n_users, groups = len(users.keys), self.config.groups
        of = np.repeat(np.arange(n_users), np.diff(users.offsets))
        votes = np.bincount(of * groups + users.labels[users.items], minlength=n_users * groups)
        return votes.reshape(n_users, groups)
