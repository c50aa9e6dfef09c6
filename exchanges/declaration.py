"""What an exchange is, for both sides: its kind, what goes down to whom, and what comes up from whom.

Server and clients read the same declaration. The server's conversation bounds an answer by it before it reads it, the
meter and `fedrec describe` count by it, and both sides encode and decode by it. What comes up need not be what went
down, and either may differ by participant.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedrec.wire.packet import PacketFormat


@dataclass(frozen=True)
class Participant:
    """Who takes part in an exchange: users on one node.

    Attributes:
        keys: uint64 [users], the users' opaque keys. What is declared may depend on them: they are known to both sides.
    """

    keys: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(1, dtype=np.uint64))

    @property
    def users(self) -> int:
        """How many."""
        return len(self.keys)


class Declaration(ABC):
    """One kind of exchange, with all that both sides know of it beforehand.

    Attributes:
        kind: Its name, by which a client finds what to do.
        alike: Whether the same is declared for the devices of all users.
    """

    kind: ClassVar[str]
    alike: ClassVar[bool] = True

    @abstractmethod
    def down(self, to: Participant) -> Mapping[str, PacketFormat]:
        """The packets that go to a participant, by name; apart from what is sent once."""

    @abstractmethod
    def up(self, by: Participant) -> Mapping[str, PacketFormat]:
        """The packets that come from it, by name."""

    def down_bytes(self, to: Participant) -> int:
        """Their length."""
        return sum(form.size() for form in self.down(to).values())

    def up_bytes(self, by: Participant) -> int:
        """Their length, or the most that it can be: an answer has no more than that, and little beside it."""
        return sum(form.size() for form in self.up(by).values())

    def each_up(self, by: Participant) -> NDArray[np.int64]:
        """int64 [users]: what each of the users would upload as a device of its own."""
        if self.alike:
            one = Participant(by.keys[:1])
            return np.full(by.users, self.up_bytes(one), dtype=np.int64)
        alone = (Participant(by.keys[place : place + 1]) for place in range(by.users))
        return np.array([self.up_bytes(one) for one in alone], dtype=np.int64)

    def each_down(self, name: str, to: Participant) -> NDArray[np.int64]:
        """int64 [users]: what each of them would download of the packet `name` as a device of its own."""
        if self.alike:
            one = Participant(to.keys[:1])
            return np.full(to.users, self.down(one)[name].size(), dtype=np.int64)
        alone = (Participant(to.keys[place : place + 1]) for place in range(to.users))
        return np.array([self.down(one)[name].size() for one in alone], dtype=np.int64)

    def range_up(self) -> tuple[int, int]:
        """The fewest and the most bytes that a user's device uploads. To be overridden by one that is not `alike`."""
        size = self.up_bytes(Participant())
        return size, size

    def expected_up(self) -> float:
        """The mean over users of what a user's device uploads. To be overridden by one that is not `alike`."""
        return self.up_bytes(Participant())


class Regular(NamedTuple):
    """An exchange beside training and ranking that all users who are here take part in, every so many rounds."""

    declared: Declaration
    every: int
