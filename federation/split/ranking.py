"""A ranking whose model is split: two messages for each part of the users, and for each split of the data.

The parts are of so many users of each node that a message is of bounded length, however many live there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
from flwr.app import Array
from numpy.typing import NDArray
from typing_extensions import override

from exchanges import records
from exchanges import split as declarations
from federation.conversation import Conversation
from federation.directory import Directory, Share
from federation.ranking import Ranking, RankingOrder
from federation.split.middle import middle_of, through
from federation.split.stages import Hidden, Reading, When, sent, still_here
from fedrec.wire.lead import Lead

_AT_ONCE = 64 * 2**20
"""Bytes of hidden states in a message, about."""


class SplitRanking(Ranking):
    """Ranks part after part of the users, and adds up what came of them."""

    def __init__(self, order: RankingOrder) -> None:
        """As `Ranking`."""
        super().__init__(order)
        self._order = order

    @override
    def carry(self, talk: Conversation) -> None:
        self._sums = {(group, split): {} for group in self._groups for split in self._splits}
        self._leads = {}
        order, models = self._order, self._order.models
        split = declarations.split_of(order.setup)
        at_once = max(1, _AT_ONCE // (4 * split.length * split.width))
        for of in self._splits:
            when = When(order.setup, models, order.after, order.kept, order.max_failures, 1, of)
            for asked in parts_of(talk.directory.shares(talk.directory.here), at_once):
                reading = Reading(when, partial(still_here, asked))
                talk.carry(reading)
                hidden = {
                    (node, group): through(split, middle_of(split, models, group), each)
                    for (node, group), each in reading.hidden.items()
                }
                read = {node: reading.shares[node] for node in reading.taken}
                ranked = _Part(order._replace(splits=[of]), read, hidden)
                talk.carry(ranked)
                self._add(ranked)

    def _add(self, part: Ranking) -> None:
        for key, nodes in part._sums.items():
            for node, sums in nodes.items():
                before = self._sums[key].get(node, (0.0,) * len(sums))
                self._sums[key][node] = tuple(a + b for a, b in zip(before, sums, strict=True))
        for where, lead in part._leads.items():
            so_far = self._leads.get(where, Lead(0, 0.0, 0.0))
            self._leads[where] = Lead(
                so_far.users + lead.users, so_far.total + lead.total, so_far.squares + lead.squares
            )


class _Part(Ranking):
    """The second message of a part."""

    def __init__(self, order: RankingOrder, asked: Mapping[int, Share], hidden: Hidden) -> None:
        super().__init__(order)
        setup, models = order.setup, order.models
        self.declared = declarations.SplitRanking(setup, models.model, order.splits)
        upper = models.model.upper
        self._packets = {group: model.packet(order.after, order.kept, upper) for group, model in models.items()}
        self._asked, self._hidden, self._setup = asked, hidden, setup

    @override
    def participants(self, directory: Directory) -> dict[int, Share]:
        super().participants(directory)
        return still_here(self._asked, directory)

    @override
    def arrays(self, node: int) -> Mapping[str, NDArray[np.generic]]:
        return {**super().arrays(node), records.SLOTS: self.shares[node].slots}

    @override
    def packets(self, node: int) -> Mapping[str, bytes | Array]:
        return {**super().packets(node), **sent(self, self._setup, node, records.HIDDEN, self._hidden)}


def parts_of(whole: Mapping[int, Share], at_once: int) -> Iterator[dict[int, Share]]:
    """The users of each node in as few parts as have no more than `at_once` users, all of about the same size.

    A site may refuse to rank few users: no part is a small rest of them.
    """
    parts = {node: -(-len(share.users) // at_once) for node, share in whole.items()}
    split = {
        node: list(zip(np.array_split(share.users, parts[node]), np.array_split(share.slots, parts[node]), strict=True))
        for node, share in whole.items()
    }
    for part in range(max(parts.values(), default=0)):
        yield {node: Share(*of_node[part]) for node, of_node in split.items() if part < len(of_node)}
