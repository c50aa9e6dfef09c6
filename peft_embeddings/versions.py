"""Versions of what devices hold under a model: what a packet makes of one, on the server and on every device."""

from __future__ import annotations

import hashlib

from fedrec.core.tensors import Tensors
from fedrec.wire.packet import PacketFormat
from fedrec.wire.protocol import Setup
from peft_embeddings.model import BASE, Model


def held_format(setup: Setup, model: Model, *, merged: bool) -> PacketFormat:
    """The packet of all that is held, before the first version was made of it or after (`merged`)."""
    return setup.held_format(model.held, model.coded, merged=merged)


def merged_format(setup: Setup, model: Model) -> PacketFormat:
    """The packet that makes a version of the one before it."""
    return setup.merged_format(model.merging)


def next_version(setup: Setup, model: Model, held: Tensors, merged: Tensors) -> Tensors:
    """What is held after a packet that decodes to `merged` (`merged_format`).

    A correction is folded into the base table. A step is added to the tables, which are then rounded to what the packet
    of all of them can hold, so that it is no longer than that of any table of the run.
    """
    if not model.steps:
        return held | {BASE: model.merged(merged, held)}
    moved = held | {name: held[name] + merged[name] for name in model.stepped}
    whole = held_format(setup, model, merged=True)
    return whole.codec.decode(memoryview(whole.codec.encode(moved, whole.spec, None)), whole.spec)


def version_name(before: str, merged: bytes) -> str:
    """The name of the base table that the packet `merged` makes of the one named `before`: 64 hexadecimal digits.

    A chain of names, not a digest of the table: adding up may round differently on another machine.
    """
    return hashlib.sha256(before.encode() + b"\0" + hashlib.sha256(merged).digest()).hexdigest()
