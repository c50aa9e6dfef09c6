"""What a node contributes to a round: the sum over its users, and the counts that go with it."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedrec.core.tensors import Tensors
from fedrec.stages.contributions import Contributions

DROPPED = ("non_finite", "too_large", "no_negatives")
"""Why a node leaves a user out: NaN or infinity in its delta, a norm above the limit, or no item it does not know."""

LATE = "late"
"""One more reason, of simulated time alone: its packet came after the deadline (`fedrec.networks.simulated`)."""


@dataclass
class NodeUpdate:
    """The sum over a node's users of weight times factor times change, and the counts that go with it.

    Attributes:
        total: The sum, as the run's stages add up.
        weight: The users' weights.
        users: Who is in the sum.
        examples: Their training interactions.
        loss: Their losses, weighted.
        cold: Those of them who trained for the first time.
        dropped: Users who were left out, by reason (`DROPPED`, `LATE`): a bad user does not cost the others.
        packet_bytes: Bytes of the tensors in the packets that the devices of all of them would send, each its own.
    """

    total: Tensors
    weight: float = 0.0
    users: int = 0
    examples: int = 0
    loss: float = 0.0
    cold: int = 0
    dropped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(DROPPED, 0))
    packet_bytes: int = 0

    def scalars(self) -> tuple[float, ...]:
        """In the order of `fedrec.wire.protocol.UPDATE_SCALARS`."""
        sums = (self.weight, self.users, self.examples, self.loss, self.cold)
        return tuple(float(value) for value in (*sums, *(self.dropped[name] for name in DROPPED)))

    def say_no_more(self) -> None:
        """Forget what is told beside the sum, its weight and its number of users."""
        self.examples, self.loss, self.cold = 0, 0.0, 0
        self.dropped = dict.fromkeys(DROPPED, 0)

    def count(self, given: Contributions) -> None:
        """Count users whose contributions have been added to the total, and those who were dropped."""
        weight = given.weight[given.kept]
        self.weight += float(weight.sum())
        self.users += int(given.kept.sum())
        self.examples += int(given.examples[given.kept].sum())
        self.loss += float((weight * given.loss[given.kept].double()).sum())
        for reason, users in given.dropped.items():
            self.dropped[reason] = self.dropped.get(reason, 0) + users
