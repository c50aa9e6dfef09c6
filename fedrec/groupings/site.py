"""Groups by the site's own word: a shop, a region, a hospital."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from annotated_types import MaxLen, MinLen
from numpy.typing import NDArray
from pydantic import Field, Strict
from typing_extensions import override

from fedrec.config.schema import RunConfig
from fedrec.core.bounds import MOST_GROUPS
from fedrec.core.errors import ConfigError
from fedrec.core.registry import MemberConfig, groupings, nearest
from fedrec.groupings.base import Grouping, Users

Name = Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,32}\z")]
"""Part of the name of a file on every site, whatever a server says."""


@dataclass(frozen=True)
class SiteConfig(MemberConfig):
    """Configuration of `site`.

    Attributes:
        groups: Their names, of small letters, digits, `_` and `-`. Each site says which one its users belong to:
            `group='north'` in its node configuration.
    """

    name: Literal["site"]
    groups: Annotated[tuple[Name, ...], Strict(False), MinLen(2), MaxLen(MOST_GROUPS)]


@groupings.register("site")
class GroupsBySite(Grouping):
    """All users of a site in the group that the site names."""

    config_class = SiteConfig

    @classmethod
    def problems(cls, config: RunConfig) -> list[str]:
        """Names that are given twice, and a run in which nobody could say one."""
        names: tuple[str, ...] = config.grouping.groups  # type: ignore[attr-defined]
        found = []
        if len(set(names)) < len(names):
            found.append(f"grouping.groups={list(names)}: a group is named twice; give each once")
        if config.runtime == "simulation":
            found.append(
                "grouping=site: simulated nodes have no site that could name its group: take grouping=key, or "
                "runtime=deployment"
            )
        return found

    @property
    @override
    def names(self) -> tuple[str, ...]:
        return tuple(self.config.groups)

    @override
    def assign(self, users: Users) -> NDArray[np.int64]:
        if users.word not in self.names:
            came = f"group='{users.word}'" if users.word else "no group"
            raise ConfigError(
                [
                    f"this node's configuration names {came}, and the run has the groups {', '.join(self.names)}: "
                    f"give group='...' in --node-config; {nearest(users.word, list(self.names))}"
                ]
            )
        return np.full(len(users.keys), self.names.index(users.word), dtype=np.int64)
