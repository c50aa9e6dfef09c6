"""From Flower's records to our packets and back: every message and reply is a few flat arrays and a few scalars."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from numpy.typing import NDArray

from fedrec.core.errors import PacketError
from fedrec.wire.packet import to_array

ENROLL = "query.enroll"
COUNT = "query.count_items"
TRAIN = "train"
EVALUATE = "evaluate"

ANNOUNCE = "query.announce"
SHARE = "query.share"
UNMASK = "query.unmask"
"""The stages of a secure sum around the training (`fedrec.wire.secure`)."""

READ = "query.read"
JUDGE = "query.judge"
"""The stages of a split training before its last, which is `TRAIN`; a ranking's first, before `EVALUATE`, is `READ`."""

MODEL = "model"
SLOTS = "slots"
UPDATE = "update"
DOWN = "down"
"""Array beside the slots where time is simulated: the bytes that each user's device downloads for this message."""
CLOCK = "clock"
"""Beside an update then: the time that its users took (`fedrec.wire.clock`)."""
RIVAL = "rival"
"""Array of a ranking in a simulation: each user's result under a baseline, by slot; 0 for who is not ranked."""
LEAD = "lead"
"""Beside the metrics of the test then: how far the model is ahead of it (`fedrec.wire.lead`)."""
METRICS = "metrics."
"""Prefix of the array that carries the sums of metrics of a split; its name follows."""
ANNOUNCED, ROLL, SEALED, STATUS, OPENED = "announced", "roll", "sealed", "status", "opened"
"""Packets of a secure sum."""
HIDDEN, GRADIENTS = "hidden", "gradients"
"""Packets of a split run: hidden states of users' histories, and gradients of them."""
CROSSING = (HIDDEN, GRADIENTS)
PARTICIPANTS = "participants"
"""Field beside the roll: how many are on it."""
KEYS = "keys"
GROUPS = "groups"
"""Array beside them in a run with groups: the place of each user's group among the run's."""
GRADE = "grade"
"""Field beside them: what the node says of its device."""
COUNTS = "counts"
FROZEN = "frozen."
"""Prefix of the array that carries frozen tensors; their digest follows."""

MERGED = "merged."
"""Prefix of the array that carries what was merged into a base table; the name of the version that it makes follows."""

VERSIONS = "versions"
"""Field of a message with such arrays: names of versions, oldest first, each made of the one before it."""

HOLDS = "frozen"
"""Field of a message that brings a model: the name of what is frozen under it."""

CONTENT = "content"
"""Field beside `frozen`: the digest of what that name stands for on the server, with which it must come if it comes."""

MISSING = "missing"
"""Field of a reply that names what the node lacks: `setup`, or the digest of frozen tensors."""

UNSHARED = "unshared"
"""Field of a reply that says why the worker cannot serve any node: it does not see the simulation's folders."""

PROBLEM = "problem"
"""Field of a reply that says why the node cannot do what it was asked for, and what can be mended."""

REASON = "reason"
"""Field beside it: one of `REASONS`."""

REASONS = ("malformed", "misconfigured", "policy", "store")
"""Why: what the server sent, the node's configuration, what its policy does not allow, or its disk."""

LOSSES = "losses"
"""Field of a reply: what the node has found lost or damaged since its last one; names of `LOSS_NAMES`, with blanks."""

LOSS_NAMES = (
    "store_damaged",
    "store_lost",
    "data_damaged",
    "frozen_damaged",
    "secret_changed",
    "run_unknown",
)
"""What a node may find: the users' store is damaged, or another than was written to, or older; the prepared data, or
what was sent once, is damaged; the secret has changed; the run that goes on is one of which it has nothing."""

NAMED = "named"
"""Field of a message to a site: the digest of its users' keys as the server knows them, for a site may have others
since its disk was lost. It is what such a site then names as missing."""

SPLITS = "splits"
"""Field of a message that asks for a ranking: the splits, with a blank between them."""

CARRIES = "carries"
"""Field of a message that carries several exchanges: their kinds, in the order in which they are done, with blanks."""

AFTER = "after"
"""Field beside it: the round after which users are ranked, with the private tensors that they had then."""

RESUMED = "resumed"
"""Field of an enrolment in a run that was resumed: the round after which it went on each time, with blanks between."""

SLACK = 65_536
"""Bytes that an answer may have beside its packets: names, fields, and the frame that numpy puts around an array."""

_NUMBER = 8
_ARRAYS = "arrays"
_FIELDS = "fields"

Field = int | float | str

_OF_GROUP = "@"


def grouped(name: str, group: str) -> str:
    """The name under which a message carries what belongs to a group; the plain one where there are no groups."""
    return f"{name}{_OF_GROUP}{group}" if group else name


def ungrouped(name: str) -> str:
    """The inverse of `grouped`, without the group."""
    return name.partition(_OF_GROUP)[0]


class Content(NamedTuple):
    """A message's content: named arrays and named fields."""

    arrays: Mapping[str, NDArray[np.generic]]
    fields: Mapping[str, Field]

    def packet(self, name: str) -> bytes:
        """One packet's bytes. Raises PacketError (`malformed`) if the content has none of that name."""
        array = self.array(name)
        if array.dtype != np.uint8 or array.ndim != 1:
            raise PacketError("malformed", f"{name!r} is a {array.ndim}-d array of {array.dtype}, not a packet's bytes")
        return array.tobytes()

    def array(self, name: str) -> NDArray[np.generic]:
        """One array. Raises PacketError (`malformed`) if the content has none of that name."""
        if name not in self.arrays:
            raise PacketError("malformed", f"the message has no array {name!r}; it has {sorted(self.arrays)}")
        return self.arrays[name]

    def text(self, name: str) -> str:
        """One text field. Raises PacketError (`malformed`) if it is missing or not text."""
        value = self.fields.get(name)
        if not isinstance(value, str):
            raise PacketError("malformed", f"the message's field {name!r} should be text, it is {value!r}")
        return value

    def integer(self, name: str) -> int:
        """One whole number. Raises PacketError (`malformed`) if it is missing or not one."""
        value = self.fields.get(name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise PacketError("malformed", f"the message's field {name!r} should be a whole number, it is {value!r}")
        return value


def shown(text: object, most: int = 200) -> str:
    """Text from a node as a log may show it: in one line, without control characters, and not too long."""
    plain = " ".join(str(text)[: 16 * most].split())
    cut = plain[:most] + ("..." if len(plain) > most else "")
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in cut)


def wrap(packet: bytes) -> Array:
    """A packet as the runtime carries it: made once, it may be part of any number of messages."""
    return Array(to_array(packet))


def size(wrapped: Array) -> int:
    """Length in bytes of a packet that was wrapped."""
    return wrapped.shape[0]


def weight(message: Message) -> int:
    """Bytes of everything in a message, as it came and unread: arrays, texts, numbers, names, and an error's reason."""
    if message.has_error():
        return len((message.error.reason or "").encode())
    total = 0
    for name, record in message.content.items():
        total += len(name.encode())
        for key, value in record.items():
            total += len(key.encode()) + (_of_array(value) if isinstance(value, Array) else _of_value(value))
    return total


def _of_array(array: Array) -> int:
    return len(array.data) + len(array.dtype) + len(array.stype) + _NUMBER * len(array.shape)


def _of_value(value: Any) -> int:
    """Of a value of a configuration or metric record: a number, a truth value, text, bytes, or a list of such."""
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, list):
        return (
            sum(_of_value(each) for each in value)
            if value and isinstance(value[0], str | bytes)
            else (_NUMBER * len(value))
        )
    return _NUMBER


def pack(
    fields: Mapping[str, Field],
    packets: Mapping[str, bytes | Array] | None = None,
    arrays: Mapping[str, NDArray[np.generic]] | None = None,
) -> RecordDict:
    """Records with the given fields, packets and arrays; a wrapped packet is shared with others that hold it."""
    record = ArrayRecord()  # filled one by one: made from a dictionary it would hold an Array of its own for each
    for name, packet in (packets or {}).items():
        record[name] = wrap(packet) if isinstance(packet, bytes) else packet
    for name, array in (arrays or {}).items():
        record[name] = Array(np.ascontiguousarray(array))
    return RecordDict({_ARRAYS: record, _FIELDS: ConfigRecord(dict(fields))})


def joined(content: RecordDict, extra: RecordDict) -> RecordDict:
    """The content of a message with what `extra` adds to its arrays and fields; neither is changed."""
    arrays = {
        name: ArrayRecord(dict(content.array_records[name]) | dict(record))
        for name, record in extra.array_records.items()
    }
    fields = {
        name: ConfigRecord(dict(content.config_records[name]) | dict(record))
        for name, record in extra.config_records.items()
    }
    return RecordDict({**arrays, **fields})


def unpack(content: RecordDict) -> Content:
    """The content of a message. Raises PacketError (`malformed`) if it is not made as `pack` makes it."""
    arrays, fields = content.get(_ARRAYS), content.get(_FIELDS)
    if not isinstance(arrays, ArrayRecord) or not isinstance(fields, ConfigRecord):
        raise PacketError("malformed", f"a message has the records {_ARRAYS!r} and {_FIELDS!r}; it has {list(content)}")
    scalars = {name: value for name, value in fields.items() if isinstance(value, int | float | str)}
    try:
        read: dict[str, Any] = {name: array.numpy() for name, array in arrays.items()}
    except Exception as error:  # numpy hands hostile bytes to Python's tokeniser and to zipfile: any error may come
        raise PacketError("malformed", f"an array of the message cannot be read: {error}") from error
    if others := [name for name, array in read.items() if not isinstance(array, np.ndarray)]:
        raise PacketError("malformed", f"{others} of the message are archives of arrays, which numpy opens too")
    return Content(read, scalars)
