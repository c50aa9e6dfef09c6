"""How a node answers: one place turns whatever goes wrong into a reply that names it, and says what was found lost.

An answer is what was asked for, or what the node lacks, or why it cannot do it. No site's ends in a stack trace: what a
server sends is checked before it is used, and what a disk throws is the site's own problem, which its owner can mend.
In a simulation, where server and nodes are one person's, what is wrong with a message is raised where it was found.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flwr.app import Context, Message
from numpy.typing import NDArray

from client_app.answers.granting import limited
from client_app.answers.node import Node
from client_app.homes.policy import policy_of
from client_app.homes.sent import log_sent
from client_app.homes.site import is_site, site_of
from client_app.stores.frozen import MissingFrozenError
from exchanges import records
from exchanges.records import Content, Field, grouped, pack, ungrouped, unpack
from fedrec.core.bounds import MOST_BYTES
from fedrec.core.errors import ConfigError, FedrecError, PacketError, PolicyError, StoreError
from fedrec.core.shared_folder import NotSharedError

log = logging.getLogger("fedrec")

SETUP = "setup"
"""Field of an enrolment, and of a message to a node that has forgotten the run: its setup."""

_FIELDS = (
    SETUP,
    "phase",
    "round",
    records.NAMED,
    records.RESUMED,
    records.SPLITS,
    records.AFTER,
    records.CARRIES,
    records.PARTICIPANTS,
)
_ARRAYS = (records.SLOTS, records.DOWN, records.RIVAL, records.ROLL, records.SEALED, records.STATUS)
_OF_GROUPS = (records.MODEL, records.HOLDS, records.CONTENT, records.VERSIONS, *records.CROSSING)
"""Fields and arrays that there are for each group, under its name."""
_PREFIXES = (records.FROZEN, records.MERGED)
_MOST_ROUND = 2**32 - 1
_LOGGED = (records.PROBLEM, records.REASON, records.MISSING, records.LOSSES)
"""Fields of an answer that are part of its line in the log of what left."""


class Answer(NamedTuple):
    """What a reply holds."""

    fields: Mapping[str, Field] = {}
    packets: Mapping[str, bytes] = {}
    arrays: Mapping[str, NDArray[np.generic]] = {}


Work = Callable[[Content, list[Node]], Answer]


class LackingError(Exception):
    """The node lacks what it names: the run's setup, or users whom the server thinks are here."""


def answered(message: Message, context: Context, work: Work) -> Message:
    """The reply to a message.

    Args:
        message: What came.
        context: Of the node.
        work: Does what is asked for; it puts the node into the list as soon as it knows it.
    """
    nodes: list[Node] = []
    try:
        answer = _done(message, context, work, nodes)
    except (FedrecError, OSError) as error:
        joins = message.metadata.message_type == records.ENROLL
        if not is_site(context.node_config) and not (joins and isinstance(error, ConfigError | StoreError)):
            raise
        log.error("this node cannot %s: %s", "take part" if joins else "do what it was asked for", error)
        answer = Answer({records.PROBLEM: _words(error), records.REASON: _reason(error)})
    answer = answer._replace(fields={**answer.fields, **_losses(nodes)})
    if is_site(context.node_config):
        answer = _written_down(message, context, nodes, answer)
    return Message(pack(answer.fields, answer.packets, answer.arrays), reply_to=message)


def _done(message: Message, context: Context, work: Work, nodes: list[Node]) -> Answer:
    """The work, within what a site's policy grants; or what the node lacks to do it."""
    try:
        if not is_site(context.node_config):
            return work(unpack(message.content), nodes)
        with limited(policy_of(site_of(context.node_config))):
            return work(unpack(message.content), nodes)
    except MissingFrozenError as missing:
        return Answer({records.MISSING: missing.digest})
    except LackingError as lacking:
        return Answer({records.MISSING: str(lacking)})
    except NotSharedError as error:
        return Answer({records.UNSHARED: str(error)})


def _written_down(message: Message, context: Context, nodes: Sequence[Node], answer: Answer) -> Answer:
    """The answer, of which a line is in the log of what left; if it cannot be written, that is the answer.

    There is no log where there is no state-dir: nothing can have left.
    """
    try:
        state_dir = site_of(context.node_config).state_dir
    except ConfigError:
        return answer
    if not state_dir.is_dir():
        return answer
    fields: Mapping[str, object] = message.content.config_records.get("fields") or {}
    sizes = {name: len(packet) for name, packet in answer.packets.items()}
    sizes |= {name: array.nbytes for name, array in answer.arrays.items()}
    try:
        log_sent(
            state_dir,
            run=nodes[0].setup.run_key if nodes else None,
            exchange=message.metadata.message_type.removeprefix("query."),
            **{name: value for name in ("phase", "round") if isinstance(value := fields.get(name), int)},
            bytes=sizes,
            **{name: str(value) for name, value in answer.fields.items() if name in _LOGGED},
        )
    except OSError as error:
        log.error("what leaves cannot be written down, so nothing does: %s", error)
        return Answer({records.PROBLEM: _words(error), records.REASON: "store"})
    return answer


def _words(error: Exception) -> str:
    if isinstance(error, FedrecError):
        return str(error)
    return f"the disk of this node: {type(error).__name__}: {error}"


def _reason(error: Exception) -> str:
    if isinstance(error, PacketError):
        return "malformed"
    if isinstance(error, PolicyError):
        return "policy"
    return "misconfigured" if isinstance(error, ConfigError) else "store"


def _losses(nodes: Iterable[Node]) -> dict[str, Field]:
    """What the node has found lost since its last reply; from here on it has been told."""
    names = sorted({name for node in nodes for name in node.losses})
    for node in nodes:
        node.losses.clear()
    return {records.LOSSES: " ".join(names)} if names else {}


def round_of(content: Content) -> int:
    """The round that a message names. Raises PacketError (`malformed`) if it is none."""
    round = content.integer("round")
    if not 0 <= round <= _MOST_ROUND:
        raise PacketError("malformed", f"a round is a number from 0 to {_MOST_ROUND}, not {round}")
    return round


def slots_of(content: Content, users: int) -> NDArray[np.int64]:
    """The chosen users that a message names, int64 [users], ascending. Raises PacketError (`malformed`)."""
    slots: NDArray[Any] = content.array(records.SLOTS)
    if slots.dtype.kind not in "iu" or slots.ndim != 1 or not len(slots) or len(slots) > users:
        raise PacketError("malformed", f"{slots.dtype} {list(slots.shape)} came as slots of this node's {users} users")
    if (slots < 0).any() or (slots >= users).any() or (slots[1:] <= slots[:-1]).any():
        raise PacketError("malformed", f"slots that are not, in order, among this node's {users} users")
    return slots.astype(np.int64)


def down_of(content: Content, users: int) -> NDArray[np.int64]:
    """The bytes that each of so many users downloads, int64 [users]. Raises PacketError (`malformed`)."""
    down: NDArray[Any] = content.array(records.DOWN)
    if down.dtype != np.int64 or down.shape != (users,) or (down < 0).any() or (down > MOST_BYTES).any():
        raise PacketError("malformed", f"{down.dtype} {list(down.shape)} came as the downloads of {users} users")
    return down


def rival_of(content: Content, node: Node) -> NDArray[np.float64] | None:
    """Each user's result under a baseline, float64 [users] by slot, if a simulation's server asks to be compared.

    Raises PacketError (`malformed`); at a site, too, which has nothing to do with it.
    """
    if records.RIVAL not in content.arrays:
        return None
    if node.setup.simulation is None:
        raise PacketError(
            "malformed", "no user of a site is compared with a baseline: the server cannot know its result"
        )
    found: NDArray[Any] = content.arrays[records.RIVAL]
    users = len(node.users)
    if found.dtype != np.float64 or found.shape != (users,) or not ((found >= 0) & (found <= 1)).all():
        raise PacketError("malformed", f"{found.dtype} {list(found.shape)} came as the results of {users} users")
    return found


def rounds_of(text: str) -> list[int]:
    """Rounds with blanks between them. Raises PacketError (`malformed`) if they are none."""
    words = text.split()
    if len(words) > 10_000 or not all(word.isascii() and word.isdecimal() and len(word) <= 10 for word in words):
        raise PacketError("malformed", f"the rounds after which a run was resumed should be numbers, not {text[:80]!r}")
    return [int(word) for word in words]


def require_known(content: Content) -> None:
    """Raise PacketError (`malformed`) if the content has a field or an array that no message has."""
    unknown = [name for name in content.fields if name not in _FIELDS and ungrouped(name) not in _OF_GROUPS]
    unknown += [
        name
        for name in content.arrays
        if name not in _ARRAYS and ungrouped(name) not in _OF_GROUPS and not name.startswith(_PREFIXES)
    ]
    if unknown:
        raise PacketError("malformed", f"the message has {sorted(unknown)[:5]}, which no message has")


def require_groups(content: Content, groups: Sequence[str]) -> None:
    """Raise PacketError (`malformed`) if the content has anything for a group that the run does not have."""
    legal = {grouped(name, group) for name in _OF_GROUPS for group in groups}
    found = [name for name in (*content.fields, *content.arrays) if ungrouped(name) in _OF_GROUPS]
    if unknown := sorted(set(found) - legal):
        raise PacketError("malformed", f"the message has {unknown[:5]}, and the run has no such group")
