"""A ranking of all users after a round: what nodes are asked, the sums that they answer with, and the means over users.

It travels in messages of its own, or rides on those of the next round's training, which bring the very same models.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from exchanges import members, records
from exchanges.records import Content, Field, grouped
from federation.aggregation import check_sums
from federation.conversation import Conversation
from federation.directory import Directory, Share
from federation.exchange import Ledger
from federation.group_models import GroupModels
from federation.model_exchange import ModelExchange
from federation.node_limits import parts_that_count
from federation.rival import Rival
from fedrec.core.errors import FederationError
from fedrec.wire.lead import Lead
from fedrec.wire.protocol import METRICS_COUNTS, Setup

log = logging.getLogger("fedrec")

VALIDATION, TEST = "validation", "test"


class RankingOrder(NamedTuple):
    """What a ranking is told.

    Attributes:
        setup: What every client was told.
        models: The models.
        after: The round after which users are ranked.
        sent: The round whose messages it travels in: the next one, if it rides on that.
        kept: The earliest round to which the server may go back.
        splits: The splits.
        max_failures: Share of the nodes that may fail.
        share: The largest share of all ranked users for which one of three nodes or more counts.
        rival: What the test is compared with; None: with nothing.
    """

    setup: Setup
    models: GroupModels
    after: int
    sent: int
    kept: int
    splits: Sequence[str]
    max_failures: float
    share: float
    rival: Rival | None = None


class Ranking(ModelExchange):
    """One ranking, of one or more splits.

    Attributes:
        states: Where the models stand that are ranked.
    """

    ledger = Ledger.EVALUATION

    def __init__(self, order: RankingOrder) -> None:
        """With the models as they are now."""
        setup, models, after, sent, kept, splits, max_failures, share, rival = order
        declared = members.Ranking(setup, models.trainable, splits)
        super().__init__(declared, f"ranking after round {after}", models, after, max_failures, sent, kept)
        self.states = models.states
        self._splits = tuple(splits)
        self._share = share
        self._names = setup.metric_names()
        self._format = setup.metrics_format()
        self._sums: dict[tuple[str, str], dict[int, tuple[float, ...]]] = {}
        self._rival = rival if TEST in self._splits else None
        self._leads: dict[tuple[str, int], Lead] = {}

    def carry(self, talk: Conversation) -> None:
        """Have it carried by itself. Raises RoundError if too few took part."""
        talk.carry(self)

    @override
    def participants(self, directory: Directory) -> dict[int, Share]:
        self._sums = {(group, split): {} for group in self._groups for split in self._splits}
        self._leads = {}
        return super().participants(directory)

    @override
    def fields(self, node: int) -> Mapping[str, Field]:
        return {**super().fields(node), records.SPLITS: " ".join(self._splits), records.AFTER: self.round}

    @override
    def arrays(self, node: int) -> Mapping[str, NDArray[np.generic]]:
        if self._rival is None:
            return {}
        share, found = self.shares[node], np.zeros(self._directory.users_of(node))
        found[share.slots] = self._rival.of(self._directory.keys[share.users])
        return {records.RIVAL: found}

    @override
    def take(self, node: int, answer: Content) -> None:
        """Take a node's sums, of all groups and splits or none."""
        taken, leads = {}, {}
        for group, users in self.asked_of(node).items():
            for split in self._splits:
                packet = answer.packet(grouped(records.METRICS + split, group))
                scalars = self._format.decode(packet, phase=self.phase, round=self.round).scalars
                taken[group, split] = check_sums(scalars, users)
            if self._rival is not None:
                leads[group, node] = Lead.read(answer.packet(grouped(records.LEAD, group)), users)
        self._leads |= leads
        for key, scalars in taken.items():
            self._sums[key][node] = scalars

    def means(self) -> dict[str, dict[str, float]]:
        """For each split the means over the users who were ranked, and how many these were, when all answers are in.

        A node that says that it ranked more than `share` of all counts for that share: as if fewer of its users had
        been, with the same mean.

        Raises FederationError if nobody could be ranked.
        """
        found = {split: self._mean([key for key in self._sums if key[1] == split]) for split in self._splits}
        if nobody := [split for split, means in found.items() if means is None]:
            raise FederationError(
                f"no user could be ranked after round {self.round} ({', '.join(nobody)}): none has three interactions "
                "or more, or the model has diverged (then lower optim.lr)"
            )
        return {split: means for split, means in found.items() if means is not None}

    def lead(self) -> Lead | None:
        """How far the tested model is ahead of the rival, over all users; None if it was compared with none."""
        if not self._leads:
            return None
        # Sorted before they are added, as in `_mean`.
        users, totals, squares = (sorted(column) for column in zip(*self._leads.values(), strict=True))
        return Lead(sum(users), sum(totals), sum(squares))

    def by_group(self) -> dict[str, dict[str, dict[str, float]]]:
        """The same for each group of which anybody was ranked: group -> split -> means."""
        found: dict[str, dict[str, dict[str, float]]] = {}
        for group, split in self._sums:
            if (means := self._mean([(group, split)])) is not None:
                found.setdefault(group, {})[split] = means
        return found

    def _mean(self, keys: Sequence[tuple[str, str]]) -> dict[str, float] | None:
        ranked: Counter[int] = Counter()
        for key in keys:
            ranked.update({node: int(scalars[0]) for node, scalars in self._sums[key].items()})
        parts = parts_that_count(ranked, self._share)
        if less := sum(part < 1.0 for part in parts.values()):
            log.warning("%s: %d nodes have so many users that they count for less", self.what, less)
        of_nodes = [each for key in keys for each in self._sums[key].items()]
        # Sorted before they are added, so that the sum does not depend on which reply came first.
        weighed = sorted([parts[node] * value for value in scalars] for node, scalars in of_nodes)
        added = [sum(column) for column in zip(*weighed, strict=True)]
        if not added or not added[0]:
            return None
        means = {name: sums / added[0] for name, sums in zip(self._names, added[len(METRICS_COUNTS) :], strict=True)}
        counted = zip(*(scalars[: len(METRICS_COUNTS)] for _, scalars in of_nodes), strict=True)
        return means | {name: int(sum(column)) for name, column in zip(METRICS_COUNTS, counted, strict=True)}
