"""What a client does for each kind of exchange: a table from kinds to functions.

A function gets the question and answers with packets by name. A message may carry several exchanges: their functions
are called in order, and share what the question has decoded. A kind that the table lacks may come from another package,
by an entry point in the group `fedrec.exchange` whose name is the kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from client_app.answers import counting
from client_app.answers.handling import round_of, slots_of
from client_app.answers.keeping import keep_last_model
from client_app.answers.node import Node, Received
from exchanges import records
from exchanges.records import Content
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

    @property
    def phase(self) -> int:
        """The phase of the plan."""
        return self.node.phase(self.content.integer("phase"))

    @property
    def round(self) -> int:
        """The round in which it was sent."""
        return round_of(self.content)

    @cached_property
    def received(self) -> Received:
        """The model that came with it, decoded once, and kept by a site."""
        packet, frozen = self.content.packet(records.MODEL), self.content.text("frozen")
        received = self.node.receive(self.phase, self.round, packet, frozen)
        keep_last_model(self.node, received, packet, frozen)
        return received


Handler = Callable[[Question], Mapping[str, bytes]]


def train(asked: Question) -> Mapping[str, bytes]:
    """Train the chosen users; the node's update."""
    slots = slots_of(asked.content, len(asked.node.users))
    return {records.UPDATE: asked.node.train(asked.received, slots)}


def evaluate(asked: Question) -> Mapping[str, bytes]:
    """Rank the held-out items of all users here; sums of metrics for each split that the message asks for."""
    received, after = asked.received, asked.content.integer(records.AFTER)
    splits = asked.content.text(records.SPLITS).split()
    if unknown := [split for split in splits if split not in _HELD_OUT]:
        raise PacketError("malformed", f"the splits are among {sorted(_HELD_OUT)}, not {unknown[:5]}")
    if not splits or len(set(splits)) < len(splits):
        raise PacketError("malformed", f"a ranking is of one split or of two, not of {splits[:5]}")
    if after not in (received.round - 1, received.round) or after < 0:
        raise PacketError("malformed", f"a model sent in round {received.round} is not that after round {after}")
    return {records.METRICS + split: asked.node.evaluate(received, after, _HELD_OUT[split]) for split in splits}


def count_items(asked: Question) -> Mapping[str, bytes]:
    """The sum of the users' reported items."""
    return {records.COUNTS: counting.count_items(asked.node)}


HANDLERS: dict[str, Handler] = {
    records.TRAIN: train,
    records.EVALUATE: evaluate,
    records.COUNT: count_items,
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
