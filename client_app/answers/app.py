"""The ClientApp: from the runtime's messages to the node and back."""

from __future__ import annotations

import logging
import sys
from functools import lru_cache
from itertools import pairwise

from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp
from typing_extensions import override

from client_app.answers import expansion
from client_app.answers.node import Node
from client_app.answers.table import Question, handler
from client_app.homes.home import Place
from client_app.homes.site import Site, is_site, site_of
from client_app.stores.frozen import MissingFrozenError
from exchanges import records
from exchanges.records import Content, pack, unpack
from fedrec.core.errors import ConfigError, PacketError, StoreError
from fedrec.core.shared_folder import NotSharedError
from fedrec.wire.code import code_digest
from fedrec.wire.protocol import Setup

log = logging.getLogger("fedrec")

_SETUP = "setup"


class AnswerApp(ClientApp):
    """Answers every message by its kind: an invitation, or exchanges that the table knows."""

    @override
    def __call__(self, message: Message, context: Context) -> Message:
        kind = message.metadata.message_type
        return (enroll if kind == records.ENROLL else answer)(message, context)


app = AnswerApp()


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


def _known_node(context: Context) -> Node | None:
    record = context.state.get(_SETUP)
    if not isinstance(record, ConfigRecord):
        return None
    return _node(str(record["json"]), _place(context))


def enroll(message: Message, context: Context) -> Message:
    """Take the run's setup; answer with the users' opaque keys and the digest of the code that runs here."""
    content = unpack(message.content)
    text = content.text(_SETUP)
    try:
        node = _node(text, _place(context))
        context.state[_SETUP] = ConfigRecord({"json": text})
        _keep_frozen(node, 0, content)
        if records.RESUMED in content.fields:
            node.resume(_rounds(content.text(records.RESUMED)))
        expansion.tag_key(node)  # what it would refuse then is refused now
        reply = pack({"code": code_digest()}, arrays={records.KEYS: node.users.keys})
    except MissingFrozenError as missing:
        reply = pack({records.MISSING: missing.digest})
    except NotSharedError as error:
        reply = pack({records.UNSHARED: str(error)})
    except (ConfigError, StoreError) as error:
        log.error("this node cannot take part: %s", error)
        reply = pack({records.PROBLEM: str(error)})
    return Message(reply, reply_to=message)


def _rounds(text: str) -> list[int]:
    """Rounds with blanks between them."""
    words = text.split()
    if not all(word.isdecimal() and len(word) <= 10 for word in words):
        raise PacketError("malformed", f"the rounds after which a run was resumed should be numbers, they are {text!r}")
    return [int(word) for word in words]


def answer(message: Message, context: Context) -> Message:
    """Keep what came frozen, do what is asked, and answer; a node that lacks something names it instead."""
    content = unpack(message.content)
    if _SETUP in content.fields:
        context.state[_SETUP] = ConfigRecord({"json": content.text(_SETUP)})
    node = _known_node(context)
    if node is None:
        return Message(pack({records.MISSING: _SETUP}), reply_to=message)
    try:
        if any(array.startswith(records.FROZEN) for array in content.arrays):
            _keep_frozen(node, content.integer("phase"), content)
        _keep_merged(node, content)
        if (known := content.fields.get(records.NAMED)) is not None and known != node.named:
            log.warning("the server knows other users here than there are now: they join anew")
            return Message(pack({records.MISSING: records.NAMED}), reply_to=message)
        packets: dict[str, bytes] = {}
        asked = Question(node, content)
        for kind in _kinds(message, content):
            packets |= handler(kind)(asked)
        lost = node.stores_lost()
        return Message(pack({records.STORES_LOST: lost} if lost else {}, packets), reply_to=message)
    except MissingFrozenError as missing:
        return Message(pack({records.MISSING: missing.digest}), reply_to=message)
    except NotSharedError as error:
        return Message(pack({records.UNSHARED: str(error)}), reply_to=message)


def _kinds(message: Message, content: Content) -> list[str]:
    """The exchanges that a message carries, in order. A ranking comes before the training that would change it."""
    if records.CARRIES in content.fields:
        return content.text(records.CARRIES).split()
    return [message.metadata.message_type]


def _keep_frozen(node: Node, phase: int, content: Content) -> None:
    for array in content.arrays:
        if array.startswith(records.FROZEN):
            name = array.removeprefix(records.FROZEN)
            node.keep_frozen(phase, name, content.packet(array), _content(content, name))


def _content(content: Content, name: str) -> str:
    """The digest of what came frozen under a name: the name itself, but for a base that has been merged into."""
    return content.text(records.CONTENT) if name == content.fields.get("frozen") else name


def _keep_merged(node: Node, content: Content) -> None:
    """Bring the base table up to date with what was merged into it, one merge after the other."""
    if records.VERSIONS in content.fields:
        for before, after in pairwise(content.text(records.VERSIONS).split()):
            node.keep_merged(content.integer("phase"), before, after, content.packet(records.MERGED + after))
