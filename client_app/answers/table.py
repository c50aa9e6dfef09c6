"""What a client does for each kind of exchange: a table from kinds to functions.

A function gets the question and answers with packets by name. A message may carry several exchanges: their functions
are called in order, and share what the question has decoded. A kind that the table lacks may come from another package,
by an entry point in the group `fedrec.exchange` whose name is the kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from client_app.answers import counting, ranking
from client_app.answers.handling import down_of, rival_of, round_of, slots_of
from client_app.answers.keeping import keep_last_model
from client_app.answers.node import Node, Received
from exchanges import records
from exchanges.records import Content, grouped
from fedrec.core.errors import PacketError
from fedrec.data.split import HeldOut

_HELD_OUT: dict[str, HeldOut] = {"validation": "validation", "test": "test"}


@dataclass(frozen=True)
class Question:
    """What a message asks of a node.

    Attributes:
        node: The node.
        content: The message's content; what came frozen with it is kept already.
    """

    node: Node
    content: Content
    _received: dict[int, Received] = field(default_factory=dict)

    @property
    def phase(self) -> int:
        """The phase of the plan."""
        return self.node.phase(self.content.integer("phase"))

    @property
    def round(self) -> int:
        """The round in which it was sent."""
        return round_of(self.content)

    def received(self, group: int) -> Received:
        """The model of a group that came with it, decoded once, and kept by a site."""
        if group not in self._received:
            name = self.node.setup.groups[group]
            packet, frozen = (
                self.content.packet(grouped(records.MODEL, name)),
                self.content.text(grouped(records.HOLDS, name)),
            )
            received = self.node.receive(self.phase, self.round, group, packet, frozen)
            keep_last_model(self.node, received, packet, frozen)
            self._received[group] = received
        return self._received[group]


Handler = Callable[[Question], Mapping[str, bytes]]


def train(asked: Question) -> Mapping[str, bytes]:
    """Train the chosen users; the node's update for each of their groups, and their time where it is simulated.

    Or, in a run whose updates are masked, the node's part of the secure sum.
    """
    node = asked.node
    if node.setup.aggregation_of_run.masked:
        from client_app.answers import masking  # who is in no secure sum need not wait until this is imported

        return masking.masked(node, asked.content, partial(asked.received, 0))
    if node.backbone.split is not None:
        from client_app.answers import splitting

        return splitting.train(node, asked.content)
    slots = slots_of(asked.content, len(node.users))
    answer: dict[str, bytes] = {}
    for group in np.unique(node.groups[slots]).tolist():
        received, mine, name = asked.received(group), node.groups[slots] == group, node.setup.groups[group]
        timer = None
        if node.network is not None:
            timer = node.timer(node.network, received, slots[mine], down_of(asked.content, len(slots))[mine])
        answer[grouped(records.UPDATE, name)] = node.train(received, slots[mine], timer)
        if timer is not None:
            answer[grouped(records.CLOCK, name)] = timer.clock.packet()
    return answer


def evaluate(asked: Question) -> Mapping[str, bytes]:
    """Rank the held-out items of all users here; for their groups, sums of metrics of each split that is asked for.

    In a simulation also, of the test, how far the model is ahead of a baseline.
    """
    node, after = asked.node, asked.content.integer(records.AFTER)
    splits = asked.content.text(records.SPLITS).split()
    if unknown := [split for split in splits if split not in _HELD_OUT]:
        raise PacketError("malformed", f"the splits are among {sorted(_HELD_OUT)}, not {unknown[:5]}")
    if not splits or len(set(splits)) < len(splits):
        raise PacketError("malformed", f"a ranking is of one split or of two, not of {splits[:5]}")
    if after not in (asked.round - 1, asked.round) or after < 0:
        raise PacketError("malformed", f"a model sent in round {asked.round} is not that after round {after}")
    if node.backbone.split is not None:
        from client_app.answers import splitting

        if len(splits) > 1:
            raise PacketError("malformed", "users whose model is split are ranked for one split in a message")
        return splitting.rank(node, asked.content, after, _HELD_OUT[splits[0]])
    rival = rival_of(asked.content, node)
    answer: dict[str, bytes] = {}
    for group in np.unique(node.groups).tolist():
        received, name = asked.received(group), node.setup.groups[group]
        for split in splits:
            against = rival if split == "test" else None
            metrics, lead = ranking.evaluate(node, received, after, _HELD_OUT[split], against)
            answer[grouped(records.METRICS + split, name)] = metrics
            if lead is not None:
                answer[grouped(records.LEAD, name)] = lead.packet()
    return answer


def count_items(asked: Question) -> Mapping[str, bytes]:
    """The sum of the users' reported items."""
    return {records.COUNTS: counting.count_items(asked.node)}


def announce(asked: Question) -> Mapping[str, bytes]:
    """Stage 1 of a secure sum: the node's keys."""
    from client_app.answers import masking

    return masking.announce(asked.node, asked.content)


def share(asked: Question) -> Mapping[str, bytes]:
    """Stage 2: its secrets, shared out among its neighbours."""
    from client_app.answers import masking

    return masking.share(asked.node, asked.content)


def unmask(asked: Question) -> Mapping[str, bytes]:
    """Stage 4: of what it holds of each neighbour's secrets, one of the two."""
    from client_app.answers import masking

    return masking.unmask(asked.node, asked.content)


def read(asked: Question) -> Mapping[str, bytes]:
    """A split model's first stage, of a training or, if a split of the data is named, of a ranking: hidden states."""
    _require_split(asked.node)
    from client_app.answers import splitting

    of = None
    if records.SPLITS in asked.content.fields:
        named = asked.content.text(records.SPLITS)
        if named not in _HELD_OUT:
            raise PacketError("malformed", f"the splits are among {sorted(_HELD_OUT)}, not {named[:80]!r}")
        of = _HELD_OUT[named]
    return splitting.read(asked.node, asked.content, of)


def judge(asked: Question) -> Mapping[str, bytes]:
    """The second stage of its training: gradients of hidden states, and an update."""
    _require_split(asked.node)
    from client_app.answers import splitting

    return splitting.judge(asked.node, asked.content)


def _require_split(node: Node) -> None:
    if node.backbone.split is None:
        raise PacketError("malformed", "a stage of a split model came, and the backbone of this run is not split")


HANDLERS: dict[str, Handler] = {
    records.ANNOUNCE: announce,
    records.SHARE: share,
    records.UNMASK: unmask,
    records.TRAIN: train,
    records.EVALUATE: evaluate,
    records.COUNT: count_items,
    records.READ: read,
    records.JUDGE: judge,
}


OWN = frozenset(HANDLERS)
"""The kinds that fedrec itself has."""


def handler(kind: str) -> Handler:
    """What is done for a kind of exchange. Raises PacketError (`malformed`) if nobody here knows it."""
    if kind not in HANDLERS:
        from importlib.metadata import entry_points

        for entry in entry_points(group="fedrec.exchange", name=kind):
            HANDLERS[kind] = entry.load()
            break
        else:
            raise PacketError(
                "malformed", f"no exchange is called {kind!r} here: install the same fedrec as the server"
            )
    return HANDLERS[kind]
