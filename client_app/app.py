"""The ClientApp: from the runtime's messages to the node and back."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp

from client_app.node import MissingFrozenError, Node, Place
from fedrec.data.split import HeldOut
from fedrec.errors import FedrecError, PacketError
from fedrec.protocol import Setup, code_digest
from strategies import records
from strategies.records import Content, pack, unpack

app = ClientApp()

_SETUP = "setup"
_HELD_OUT: dict[str, HeldOut] = {"validation": "validation", "test": "test"}


@lru_cache(maxsize=16_384)
def _node(setup: str, place: Place) -> Node:
    """A worker that sees a node again finds what it read and built before."""
    return Node(_setup(setup), place)


@lru_cache(maxsize=4)
def _setup(text: str) -> Setup:
    """One object for all nodes of a run that share this worker."""
    return Setup.from_json(text)


def _place(context: Context) -> Place:
    config = context.node_config
    try:
        return Place(int(config["partition-id"]), int(config["num-partitions"]))
    except KeyError as error:
        raise FedrecError(
            f"the node's configuration has no {error.args[0]!r}; it has {sorted(config)}: a simulated node gets its "
            "part of the users from partition-id and num-partitions"
        ) from error


def _known_node(context: Context) -> Node | None:
    record = context.state.get(_SETUP)
    if not isinstance(record, ConfigRecord):
        return None
    return _node(str(record["json"]), _place(context))


@app.query("enroll")
def enroll(message: Message, context: Context) -> Message:
    """Take the run's setup; answer with the users' opaque keys and the digest of the code that runs here."""
    text = unpack(message.content).text(_SETUP)
    node = _node(text, _place(context))
    context.state[_SETUP] = ConfigRecord({"json": text})
    content = pack({"code": code_digest()}, arrays={records.KEYS: node.users.keys})
    return Message(content, reply_to=message)


@app.query("count_items")
def count_items(message: Message, context: Context) -> Message:
    """Answer with the sum of the users' reported items."""
    return _answer(message, context, records.COUNTS, lambda node, content: node.count_items())


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the chosen users; answer with the node's update, or with what is missing to make one."""

    def work(node: Node, content: Content) -> bytes:
        slots = content.array(records.SLOTS).astype(np.int64)
        if slots.ndim != 1 or (slots < 0).any() or (slots >= len(node.users)).any() or (np.diff(slots) <= 0).any():
            raise PacketError("malformed", f"slots that are not, in order, among this node's {len(node.users)} users")
        return node.train(
            content.integer("phase"),
            content.integer("round"),
            content.packet(records.MODEL),
            slots,
            content.text("frozen"),
        )

    return _answer(message, context, records.UPDATE, work)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Rank the held-out items of all users here; answer with sums, or with what is missing to rank."""

    def work(node: Node, content: Content) -> bytes:
        split = _HELD_OUT.get(content.text("split"))
        if split is None:
            raise PacketError("malformed", f"the split is one of {sorted(_HELD_OUT)}, not {content.text('split')!r}")
        phase, round = content.integer("phase"), content.integer("round")
        return node.evaluate(phase, round, content.packet(records.MODEL), split, content.text("frozen"))

    return _answer(message, context, records.METRICS, work)


def _answer(message: Message, context: Context, name: str, work: Callable[[Node, Content], bytes]) -> Message:
    """Keep what came frozen, do the work, and answer; a node that lacks something names it instead."""
    content = unpack(message.content)
    if _SETUP in content.fields:
        context.state[_SETUP] = ConfigRecord({"json": content.text(_SETUP)})
    node = _known_node(context)
    if node is None:
        return Message(pack({records.MISSING: _SETUP}), reply_to=message)
    try:
        for array in content.arrays:
            if array.startswith(records.FROZEN):
                digest = array.removeprefix(records.FROZEN)
                node.keep_frozen(content.integer("phase"), digest, content.packet(array))
        return Message(pack({}, {name: work(node, content)}), reply_to=message)
    except MissingFrozenError as missing:
        return Message(pack({records.MISSING: missing.digest}), reply_to=message)
