"""The server's side of an exchange: whom it asks, what each is sent, and how an answer is taken."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from enum import Enum

import numpy as np
from flwr.app import Array
from numpy.typing import NDArray

from exchanges.declaration import Declaration, Participant
from exchanges.records import Content, Field
from federation.directory import Directory, Share
from federation.versions import NOTHING_FROZEN, Frozen
from fedrec.core.errors import RoundError
from fedrec.groupings.base import EVERYBODY
from fedrec.networks.simulated import SimulatedNetwork

NO_GROUPS: Mapping[str, Frozen] = {EVERYBODY: NOTHING_FROZEN}
"""Nothing need be held."""


class Ledger(Enum):
    """What the bytes of an exchange count as."""

    JOINING = "joining"
    TRAINING = "training"
    EVALUATION = "evaluation"


class Exchange(ABC):
    """One exchange, to be carried by the conversation; it may be begun again if too few took part.

    Attributes:
        declared: What both sides know of it.
        ledger: What its bytes count as.
        what: Its name for the log, and what a user knows it by.
        phase: The phase of the plan to which it belongs.
        round: The round to which it belongs.
        frozen: What its participants must hold, by group; who lacks something is sent it in the same message.
        max_failures: Share of the asked nodes that may be of no use.
        shares: Who is asked now, by node.
        taken: Nodes whose answers were taken.
        downloads: What each user's device downloads for it, int64 [users], by node; known once that is charged.
    """

    ledger = Ledger.TRAINING

    def __init__(
        self,
        declared: Declaration,
        what: str,
        phase: int,
        round: int,
        frozen: Mapping[str, Frozen] = NO_GROUPS,
        max_failures: float = 1.0,
    ) -> None:
        """See the attributes."""
        self.declared = declared
        self.what = what
        self.phase = phase
        self.round = round
        self.frozen = frozen
        self.max_failures = max_failures
        self.shares: dict[int, Share] = {}
        self.taken: list[int] = []
        self.downloads: dict[int, NDArray[np.int64]] = {}
        self._directory = Directory()

    def begin(self, directory: Directory) -> None:
        """Choose whom to ask, of those who are here; what an earlier try brought is forgotten."""
        self._directory = directory
        self.shares = self.participants(directory)
        self.taken = []

    def participant(self, node: int) -> Participant:
        """The users who are asked on a node, as the declaration knows them."""
        directory, users = self._directory, self.shares[node].users
        return Participant(directory.keys[users], directory.groups[users], directory.grade(node))

    @property
    def users(self) -> NDArray[np.int64]:
        """All who are asked, by their numbers in the directory."""
        return np.concatenate([np.zeros(0, np.int64), *(share.users for share in self.shares.values())])

    def each_down(self) -> dict[str, NDArray[np.int64]]:
        """What the devices of `users` download of each declared packet, int64 [users]."""
        if self.declared.alike:
            users = self.users
            return self.declared.each_down(Participant(self._directory.keys[users], self._directory.groups[users]))
        parts = [self.declared.each_down(self.participant(node)) for node in self.shares]
        return {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else ())}

    def charge(self, each: NDArray[np.int64]) -> None:
        """Take down what the devices of `users` download, int64 [users]."""
        ends = np.cumsum([len(share.users) for share in self.shares.values()])
        self.downloads = dict(zip(self.shares, np.split(each, ends[:-1]), strict=True)) if self.shares else {}

    def seconds(self, network: SimulatedNetwork) -> float:
        """Simulated seconds until the slowest of `users` has done its part: what is declared down, then up.

        To be overridden by one that knows better.
        """
        slowest = 0.0
        for node in self.shares:
            by = self.participant(node)
            idle = np.zeros(by.users)
            taken = network.seconds(by.keys, self.downloads[node], self.declared.each_up(by), idle)
            slowest = max(slowest, float(taken.max(initial=0.0)))
        return slowest

    def needs(self, node: int) -> Mapping[str, Frozen]:
        """What a participant must hold, by group."""
        return self.frozen

    def users_of(self, group: str) -> NDArray[np.int64]:
        """Those of `users` who must hold what is frozen for a group."""
        return self.users

    def uploaded(self, node: int) -> int:
        """What the devices of a node's users would have uploaded, all together, for its answer, which was taken.

        As declared; to be overridden where that is a bound.
        """
        return int(self.declared.each_up(self.participant(node)).sum())

    def crossed(self, node: int) -> int:
        """What of that hidden states of a split model were, or gradients of them."""
        return 0

    def participants(self, directory: Directory) -> dict[int, Share]:
        """Whom to ask, by node: all who are here, unless an exchange says otherwise."""
        return directory.shares(directory.here)

    def fields(self, node: int) -> Mapping[str, Field]:
        """What the message to a node says beside what it brings."""
        return {"phase": self.phase, "round": self.round}

    def packets(self, node: int) -> Mapping[str, bytes | Array]:
        """The declared packets for a node."""
        return {}

    def arrays(self, node: int) -> Mapping[str, NDArray[np.generic]]:
        """What else goes to a node: of the layout alone, and counted for no device."""
        return {}

    @abstractmethod
    def take(self, node: int, answer: Content) -> None:
        """Take a node's answer, whole or not at all. Raises PacketError if it is of no use."""

    def enough(self) -> bool:
        """Whether the other answers need not be waited for."""
        return False

    def require_enough(self, counts: Mapping[str, int]) -> None:
        """Raise RoundError if too few took part; `counts` says what went wrong in this round."""
        failed = len(self.shares) - len(self.taken)
        if failed > self.max_failures * len(self.shares):
            raise RoundError(
                f"{self.what}: {failed} of {len(self.shares)} nodes failed ({dict(counts)}), more than "
                f"federation.max_failures={self.max_failures} allows; see the log above for why"
            )
