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

from exchanges.records import ungrouped
from fedrec.wire.packet import PacketFormat


@dataclass(frozen=True)
class Participant:
    """Who takes part in an exchange: users on one node. What is declared may depend on all of it: both sides know it.

    Attributes:
        keys: uint64 [users], the users' opaque keys.
        groups: int64 [users], the group of each by its place among the run's; None: all are of the first.
        grade: What the node has said of its device when it joined; empty: nothing.
    """

    keys: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(1, dtype=np.uint64))
    groups: NDArray[np.int64] | None = None
    grade: str = ""

    @property
    def users(self) -> int:
        """How many."""
        return len(self.keys)

    @property
    def by_group(self) -> dict[int, int]:
        """How many of them are of each group that any is of, in the order of the groups."""
        if self.groups is None:
            return {0: self.users} if self.users else {}
        numbers, counts = np.unique(self.groups, return_counts=True)
        return dict(zip(numbers.tolist(), counts.tolist(), strict=True))

    def alone(self, place: int) -> Participant:
        """One of the users, as a device of its own of the same grade."""
        one = slice(place, place + 1)
        return Participant(self.keys[one], None if self.groups is None else self.groups[one], self.grade)


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
            return np.full(by.users, self.up_bytes(by.alone(0)) if by.users else 0, dtype=np.int64)
        return np.array([self.up_bytes(by.alone(place)) for place in range(by.users)], dtype=np.int64)

    def each_down(self, to: Participant) -> dict[str, NDArray[np.int64]]:
        """int64 [users], what each of them would download of each packet as a device of its own.

        The packets are by name, those of all groups under the one name.
        """
        places = range(min(1, to.users)) if self.alike else range(to.users)
        alone = [
            {ungrouped(name): form.size() for name, form in self.down(to.alone(place)).items()} for place in places
        ]
        names = dict.fromkeys(name for sizes in alone for name in sizes)
        each = {name: np.array([sizes.get(name, 0) for sizes in alone], dtype=np.int64) for name in names}
        return {name: np.broadcast_to(sizes, to.users) for name, sizes in each.items()}

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
