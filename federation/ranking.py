"""A ranking of all users after a round: what nodes are asked, the sums that they answer with, and the means over users.

It travels in messages of its own, or rides on those of the next round's training, which bring the very same model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flwr.app import Array
from typing_extensions import override

from exchanges import members, records
from exchanges.records import Content, Field
from federation.aggregation import check_sums
from federation.directory import Directory, Share
from federation.exchange import Exchange, Ledger
from federation.server_model import ServerModel
from fedrec.core.errors import FederationError
from fedrec.wire.protocol import METRICS_COUNTS, Setup

VALIDATION, TEST = "validation", "test"


class Ranking(Exchange):
    """One ranking, of one or more splits."""

    ledger = Ledger.EVALUATION

    def __init__(
        self,
        setup: Setup,
        model: ServerModel,
        after: int,
        sent: int,
        kept: int,
        splits: Sequence[str],
        max_failures: float,
    ) -> None:
        """A ranking with the model as it is now, after the round `after`.

        Args:
            setup: What every client was told.
            model: The model.
            after: The round after which users are ranked.
            sent: The round whose messages it travels in: the next one, if it rides on that.
            kept: The earliest round to which the server may go back.
            splits: The splits.
            max_failures: Share of the nodes that may fail.
        """
        declared = members.Ranking(setup, model.model.trainable, splits)
        what = f"ranking after round {after}"
        super().__init__(declared, what, model.state.phase, after, model.holdings, max_failures)
        self._packet, self._fields = model.packet(sent, kept), model.fields(sent)
        self._names = setup.metric_names()
        self._format = setup.metrics_format()
        self._sums: dict[str, list[tuple[float, ...]]] = {split: [] for split in splits}

    @override
    def participants(self, directory: Directory) -> dict[int, Share]:
        self._sums = {split: [] for split in self._sums}
        return super().participants(directory)

    @override
    def fields(self) -> Mapping[str, Field]:
        return {**self._fields, records.SPLITS: " ".join(self._sums), records.AFTER: self.round}

    @override
    def packets(self, node: int) -> Mapping[str, bytes | Array]:
        return {records.MODEL: self._packet}

    @override
    def take(self, node: int, answer: Content) -> None:
        """Take a node's sums, all splits or none."""
        taken = []
        for split in self._sums:
            packet = answer.packet(records.METRICS + split)
            scalars = self._format.decode(packet, phase=self.phase, round=self.round).scalars
            taken.append(check_sums(scalars, len(self.shares[node].users)))
        for sums, scalars in zip(self._sums.values(), taken, strict=True):
            sums.append(scalars)

    def means(self) -> dict[str, dict[str, float]]:
        """For each split the means over the users who were ranked, and how many these were, when all answers are in.

        Raises FederationError if nobody could be ranked.
        """
        return {split: self._mean(sums) for split, sums in self._sums.items()}

    def _mean(self, sums: Sequence[tuple[float, ...]]) -> dict[str, float]:
        # Sorted before they are added, so that the sum does not depend on which reply came first.
        added = [sum(column) for column in zip(*sorted(sums), strict=True)]
        if not added or not added[0]:
            raise FederationError(
                f"no user could be ranked after round {self.round}: none has three interactions or more, or the model "
                "has diverged (then lower optim.lr)"
            )
        counts, totals = added[: len(METRICS_COUNTS)], added[len(METRICS_COUNTS) :]
        means = {name: total / added[0] for name, total in zip(self._names, totals, strict=True)}
        return means | dict(zip(METRICS_COUNTS, map(int, counts), strict=True))
