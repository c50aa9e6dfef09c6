"""A ranking of all users after a round: what nodes are asked, the sums that they answer with, and the means over users.

It travels in messages of its own, or rides on those of the next round's training, which bring the very same model.
"""

from __future__ import annotations

from collections.abc import Sequence

from flwr.app import Message

from exchanges import records
from federation.aggregation import check_sums
from federation.meter import Meter
from federation.nodes import Nodes
from federation.versions import FrozenBytes
from fedrec.core.errors import FederationError, PacketError
from fedrec.wire.protocol import METRICS_COUNTS, Setup

VALIDATION, TEST = "validation", "test"


class Ranking:
    """One ranking, of one or more splits.

    Attributes:
        after: The round after which users are ranked.
        fields: What a message says that asks for it.
    """

    def __init__(self, setup: Setup, nodes: Nodes, phase: int, after: int, splits: Sequence[str]) -> None:
        """A ranking with the model of `phase` as it is after the round `after`, of `splits`."""
        self.after = after
        self.fields: dict[str, records.Field] = {records.SPLITS: " ".join(splits), records.AFTER: after}
        self._nodes = nodes
        self._phase = phase
        self._names = setup.metric_names()
        self._format = setup.metrics_format()
        self._sums: dict[str, list[tuple[float, ...]]] = {split: [] for split in splits}
        self._asked = self._accepted = 0

    def ask(self, meter: Meter, training: int, model: int, frozen: FrozenBytes) -> None:
        """Every node here is being asked; what an earlier try has brought is forgotten.

        Args:
            meter: Counts what the users' devices download for it.
            training: Users to whom the same message brings the model to be trained.
            model: Bytes of the model packet.
            frozen: Of what is frozen in the phase.
        """
        self._asked, self._accepted = len(self._nodes.directory.nodes), 0
        self._sums = {split: [] for split in self._sums}
        meter.evaluated(self._phase, self._nodes.directory.here, training, model, frozen)

    def take(self, meter: Meter, reply: Message) -> None:
        """Take a node's sums, all splits or none; those that cannot be right are counted with the nodes' failures."""
        node = self._nodes.sender(reply)
        residents = self._nodes.directory.users_of(node)
        taken = []
        try:
            content = records.unpack(reply.content)
            for split in self._sums:
                packet = content.packet(records.METRICS + split)
                scalars = self._format.decode(packet, phase=self._phase, round=self.after).scalars
                taken.append(check_sums(scalars, residents))
        except PacketError as error:
            self._nodes.refuse(node, error, reply)
            return
        for sums, scalars in zip(self._sums.values(), taken, strict=True):
            sums.append(scalars)
        self._accepted += 1
        meter.ranked(residents, len(taken) * self._format.size())

    def require_enough(self, max_failures: float) -> None:
        """Raise RoundError if more than `max_failures` of the nodes have failed."""
        what = f"ranking after round {self.after}"
        self._nodes.give_up_if_too_many_failed(what, self._asked, self._accepted, max_failures)

    def means(self, max_failures: float) -> dict[str, dict[str, float]]:
        """For each split the means over the users who were ranked, and how many these were, when all replies are in.

        Raises RoundError if more than `max_failures` of the nodes have failed, FederationError if nobody could be
        ranked.
        """
        self.require_enough(max_failures)
        return {split: self._mean(sums) for split, sums in self._sums.items()}

    def _mean(self, sums: Sequence[tuple[float, ...]]) -> dict[str, float]:
        # Sorted before they are added, so that the sum does not depend on which reply came first.
        added = [sum(column) for column in zip(*sorted(sums), strict=True)]
        if not added or not added[0]:
            raise FederationError(
                f"no user could be ranked after round {self.after}: none has three interactions or more, or the model "
                "has diverged (then lower optim.lr)"
            )
        counts, totals = added[: len(METRICS_COUNTS)], added[len(METRICS_COUNTS) :]
        means = {name: total / added[0] for name, total in zip(self._names, totals, strict=True)}
        return means | dict(zip(METRICS_COUNTS, map(int, counts), strict=True))
