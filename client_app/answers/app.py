"""The ClientApp: from the runtime's messages to the node and back."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import pairwise

from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp

from client_app.answers import expansion
from client_app.answers.granting import require_granted
from client_app.answers.handling import (
    SETUP,
    Answer,
    LackingError,
    answered,
    require_known,
    round_of,
    rounds_of,
    slots_of,
)
from client_app.answers.joining import join
from client_app.answers.keeping import keep_frozen, keep_last_model, keep_merged
from client_app.answers.node import Node, Received
from client_app.homes.home import Place
from client_app.homes.site import Site, is_site, site_of
from client_app.homes.site_data import is_new, require_same_setup
from exchanges import records
from exchanges.records import Content
from fedrec.core.errors import PacketError
from fedrec.data.split import HeldOut
from fedrec.wire.code import code_digest
from fedrec.wire.protocol import Setup

app = ClientApp()
log = logging.getLogger("fedrec")

_HELD_OUT: dict[str, HeldOut] = {"validation": "validation", "test": "test"}

Work = Callable[[Node, Content], Mapping[str, bytes]]


@lru_cache(maxsize=16_384)
def _node(setup: str, place: Place | Site) -> Node:
    """A worker that sees a node again finds what it read and built before."""
    return Node(_setup(setup), place)


@lru_cache(maxsize=4)
def _setup(text: str) -> Setup:
    """One object for all nodes of a run that share this worker."""
    return Setup.from_json(text)


def _place(context: Context) -> Place | Site:
    config = context.node_config
    if is_site(config):
        _log_to_stderr()
        return site_of(config)
    return Place(int(config["partition-id"]), int(config["num-partitions"]))


def _log_to_stderr() -> None:
    """A site's process is made for one message, and nobody else has given our log a place in its SuperNode's."""
    if not log.hasHandlers():
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)


def _known_node(context: Context) -> Node:
    """The node of the run that was joined. Raises LackingError if the runtime has forgotten the run's setup."""
    record = context.state.get(SETUP)
    if not isinstance(record, ConfigRecord):
        raise LackingError(SETUP)
    return _node(str(record["json"]), _place(context))


def _require_granted(node: Node, message: Message) -> None:
    if node.policy is not None:
        require_granted(node, node.policy, message.metadata.message_type.removeprefix("query."))


def _require_told_once(context: Context, text: str) -> None:
    """Raise PacketError (`malformed`) if a site was told another setup in this run of the runtime."""
    record = context.state.get(SETUP)
    if is_site(context.node_config) and isinstance(record, ConfigRecord) and record["json"] != text:
        raise PacketError("malformed", "this site was told another setup when it joined: a run keeps to its setup")


def _take_again(context: Context, text: str) -> None:
    """Take the setup of a run in whose middle the runtime has forgotten it, as the server tells it again.

    A site has joined that run, and compares it with what it was told then. Raises PacketError (`malformed`) if it is
    another than the one that is known.
    """
    _require_told_once(context, text)
    if SETUP not in context.state and is_site(context.node_config):
        _setup(text)  # what is none is not kept
    context.state[SETUP] = ConfigRecord({"json": text})


@app.query("enroll")
def enroll(message: Message, context: Context) -> Message:
    """Take the run's setup; answer with the users' opaque keys and the digest of the code that runs here."""

    def work(content: Content, nodes: list[Node]) -> Answer:
        require_known(content)
        text = content.text(SETUP)
        node = _node(text, _place(context))
        nodes.append(node)
        _require_granted(node, message)
        _require_told_once(context, text)
        _keep_frozen(node, 0, content)
        resumes = rounds_of(content.text(records.RESUMED)) if records.RESUMED in content.fields else []
        keys = join(node, resumes)
        expansion.tag_key(node)  # what it would refuse then is refused now
        context.state[SETUP] = ConfigRecord({"json": text})
        return Answer({"code": code_digest()}, arrays={records.KEYS: keys})

    return answered(message, context, work)


@app.query("count_items")
def count_items(message: Message, context: Context) -> Message:
    """Answer with the sum of the users' reported items."""
    return _answer(message, context, lambda node, content: {records.COUNTS: node.count_items()})


@app.query("disclose")
def disclose(message: Message, context: Context) -> Message:
    """Answer with what the users let others have of themselves: noised vectors, and tags of their items."""

    def work(node: Node, content: Content) -> Mapping[str, bytes]:
        return {records.DISCLOSED: expansion.disclose(node, node.phase(content.integer("phase")), round_of(content))}

    return _answer(message, context, work)


@app.query("surround")
def surround(message: Message, context: Context) -> Message:
    """Keep what the users are told of those around them; there is nothing to answer."""

    def work(node: Node, content: Content) -> Mapping[str, bytes]:
        packet = content.packet(records.AROUND)
        expansion.surround(node, node.phase(content.integer("phase")), round_of(content), packet)
        return {}

    return _answer(message, context, work)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the chosen users; answer with the node's update, or with what is missing to make one.

    If the message asks for a ranking too, it comes first: with the model, and with the private tensors, as they were
    before this round.
    """

    def work(node: Node, content: Content) -> Mapping[str, bytes]:
        slots = slots_of(content, len(node.users))
        received = _received(node, content)
        metrics = _metrics(node, content, received) if records.SPLITS in content.fields else {}
        return {**metrics, records.UPDATE: node.train(received, slots)}

    return _answer(message, context, work)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Rank the held-out items of all users here; answer with sums, or with what is missing to rank."""

    def work(node: Node, content: Content) -> Mapping[str, bytes]:
        return _metrics(node, content, _received(node, content))

    return _answer(message, context, work)


def _received(node: Node, content: Content) -> Received:
    phase, round = content.integer("phase"), round_of(content)
    packet, frozen = content.packet(records.MODEL), content.text("frozen")
    received = node.receive(phase, round, packet, frozen)
    keep_last_model(node, received, packet, frozen)
    return received


def _metrics(node: Node, content: Content, received: Received) -> dict[str, bytes]:
    """The sums of metrics of each split that the message asks for."""
    after, splits = content.integer(records.AFTER), content.text(records.SPLITS).split()
    if unknown := [split for split in splits if split not in _HELD_OUT]:
        raise PacketError("malformed", f"the splits are among {sorted(_HELD_OUT)}, not {unknown[:5]}")
    if not splits or len(set(splits)) < len(splits):
        raise PacketError("malformed", f"a ranking is of one split or of two, not of {splits[:5]}")
    if after not in (received.round - 1, received.round) or after < 0:
        raise PacketError("malformed", f"a model sent in round {received.round} is not that after round {after}")
    return {records.METRICS + split: node.evaluate(received, after, _HELD_OUT[split]) for split in splits}


def _answer(message: Message, context: Context, work: Work) -> Message:
    """Keep what came frozen, do the work, and answer; a node that lacks something names it instead."""

    def do(content: Content, nodes: list[Node]) -> Answer:
        require_known(content)
        if SETUP in content.fields:
            _take_again(context, content.text(SETUP))
        node = _known_node(context)
        nodes.append(node)
        _require_granted(node, message)
        if isinstance(node.place, Site):
            if is_new(node.place, node.setup.run_key):
                log.warning("this site has nothing of the run that goes on: it joins anew")
                raise LackingError(records.NAMED)
            require_same_setup(node.place, node.setup.run_key, node.setup.to_json())
        if any(array.startswith(records.FROZEN) for array in content.arrays):
            _keep_frozen(node, content.integer("phase"), content)
        _keep_merged(node, content)
        if (known := content.fields.get(records.NAMED)) is not None and known != node.named:
            log.warning("the server knows other users here than there are now: they join anew")
            raise LackingError(records.NAMED)
        return Answer(packets=work(node, content))

    return answered(message, context, do)


def _keep_frozen(node: Node, phase: int, content: Content) -> None:
    for array in content.arrays:
        if array.startswith(records.FROZEN):
            name = array.removeprefix(records.FROZEN)
            keep_frozen(node, phase, name, content.packet(array), _content(content, name))


def _content(content: Content, name: str) -> str:
    """The digest of what came frozen under a name: the name itself, but for a base that has been merged into."""
    return content.text(records.CONTENT) if name == content.fields.get("frozen") else name


def _keep_merged(node: Node, content: Content) -> None:
    """Bring the base table up to date with what was merged into it, one merge after the other."""
    if records.VERSIONS in content.fields:
        for before, after in pairwise(content.text(records.VERSIONS).split()):
            keep_merged(node, content.integer("phase"), before, after, content.packet(records.MERGED + after))
