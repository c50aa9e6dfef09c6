"""The contract of an aggregation: in which numbers users' updates are added up, and who sees their parts."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import Any, ClassVar

from fedrec.core.registry import MemberConfig
from fedrec.secure.graph import Graph, graph_of


@dataclass(frozen=True)
class Masks:
    """What a secure sum is made for.

    Attributes:
        corrupt: Share of its participants who may tell the server what they hold.
        dropouts: Share of them who may be lost.
        lying: Whether the server may say different things to different participants.
    """

    corrupt: float
    dropouts: float
    lying: bool

    def graph(self, participants: int) -> Graph:
        """The graph among so many. Raises FederationError if none will do."""
        return graph_of(participants, self.corrupt, self.dropouts, lying=self.lying)


class Aggregation(ABC):
    """A member of the family `aggregation`.

    Attributes:
        config: The member's configuration.
    """

    config_class: ClassVar[type[MemberConfig]]

    def __init__(self, config: Any) -> None:
        self.config = config

    @property
    def bits(self) -> int | None:
        """Of the public grid on which devices put their numbers; None: they send those of the run's codec."""
        return None

    @property
    def masks(self) -> Masks | None:
        """What the sum over all devices is made for, which is all that is seen; None: the server sees its parts."""
        return None

    @property
    def masked(self) -> bool:
        """Whether there are masks."""
        return self.masks is not None
