"""The ClientApp: from the runtime's messages to the node and back."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp
from typing_extensions import override

from client_app.answers.granting import require_granted
from client_app.answers.handling import SETUP, Answer, LackingError, answered, require_groups, require_known, rounds_of
from client_app.answers.joining import join
from client_app.answers.keeping import keep_frozen, keep_merged
from client_app.answers.node import Node
from client_app.answers.table import OWN, Question, handler
from client_app.homes.home import Place
from client_app.homes.site import Site, is_site, site_of
from client_app.homes.site_data import is_new, require_same_setup
from exchanges import records
from exchanges.records import Content, grouped
from fedrec.core.errors import PacketError
from fedrec.wire.code import code_digest
from fedrec.wire.protocol import Setup

log = logging.getLogger("fedrec")

_MOST_KINDS = 16
"""Exchanges that one message may carry."""


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


def _known_node(context: Context) -> Node:
    """The node of the run that was joined. Raises LackingError if the runtime has forgotten the run's setup."""
    record = context.state.get(SETUP)
    if not isinstance(record, ConfigRecord):
        raise LackingError(SETUP)
    return _node(str(record["json"]), _place(context))


def _require_granted(node: Node, kinds: Sequence[str]) -> None:
    """Raise PolicyError if the site's policy does not grant one of the exchanges that a message carries."""
    policy = node.policy
    if policy is not None:
        for kind in kinds:
            require_granted(node, policy, kind.removeprefix("query."))


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


def enroll(message: Message, context: Context) -> Message:
    """Take the run's setup; answer with the users' opaque keys and the digest of the code that runs here."""

    def work(content: Content, nodes: list[Node]) -> Answer:
        require_known(content)
        text = content.text(SETUP)
        node = _node(text, _place(context))
        nodes.append(node)
        _require_granted(node, [records.ENROLL])
        _require_told_once(context, text)
        _keep_frozen(node, 0, content)
        resumes = rounds_of(content.text(records.RESUMED)) if records.RESUMED in content.fields else []
        keys = join(node, resumes)
        context.state[SETUP] = ConfigRecord({"json": text})
        grade = {records.GRADE: node.place.grade} if isinstance(node.place, Site) and node.place.grade else {}
        groups = {records.GROUPS: node.groups.astype(np.uint16)} if len(node.setup.groups) > 1 else {}
        return Answer({"code": code_digest(), **grade}, arrays={records.KEYS: keys, **groups})

    return answered(message, context, work)


def answer(message: Message, context: Context) -> Message:
    """Keep what came frozen, do what is asked, and answer; a node that lacks something names it instead."""

    def work(content: Content, nodes: list[Node]) -> Answer:
        kinds = _kinds(message, content)
        if all(kind in OWN for kind in kinds):  # what an exchange of another package brings, that one checks
            require_known(content)
        if SETUP in content.fields:
            _take_again(context, content.text(SETUP))
        node = _known_node(context)
        nodes.append(node)
        _require_granted(node, kinds)
        require_groups(content, node.setup.groups)
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
        packets: dict[str, bytes] = {}
        asked = Question(node, content)
        for kind in kinds:
            packets |= handler(kind)(asked)
        return Answer(packets=packets)

    return answered(message, context, work)


def _kinds(message: Message, content: Content) -> list[str]:
    """The exchanges that a message carries, in order. A ranking comes before the training that would change it.

    Raises PacketError (`malformed`) for too many, or one twice.
    """
    if records.CARRIES in content.fields:
        kinds = content.text(records.CARRIES).split()
        if not kinds or len(kinds) > _MOST_KINDS or len(set(kinds)) < len(kinds):
            raise PacketError("malformed", f"a message carries 1 to {_MOST_KINDS} exchanges, each once: {kinds[:5]}")
        return kinds
    return [message.metadata.message_type]


def _keep_frozen(node: Node, phase: int, content: Content) -> None:
    for array in content.arrays:
        if array.startswith(records.FROZEN):
            name = array.removeprefix(records.FROZEN)
            group = _group_of(node, content, name)
            keep_frozen(node, phase, group, name, content.packet(array), _content(content, group, name))


def _group_of(node: Node, content: Content, name: str) -> str:
    """The group whose frozen tensors come under a name; the first where the message names it for none."""
    for group in node.setup.groups:
        versions = str(content.fields.get(grouped(records.VERSIONS, group), "")).split()
        if name in (content.fields.get(grouped(records.HOLDS, group)), *versions):
            return group
    return node.setup.groups[0]


def _content(content: Content, group: str, name: str) -> str:
    """The digest of what came frozen under a name: the name itself, but for a base that has been merged into."""
    holds = content.fields.get(grouped(records.HOLDS, group))
    return content.text(grouped(records.CONTENT, group)) if name == holds else name


def _keep_merged(node: Node, content: Content) -> None:
    """Bring what is held up to date with the steps and corrections that came, one after the other."""
    for group in node.setup.groups:
        if (field := grouped(records.VERSIONS, group)) in content.fields:
            versions = content.text(field).split()
            packets = [content.packet(records.MERGED + after) for after in versions[1:]]
            keep_merged(node, content.integer("phase"), group, versions, packets)
