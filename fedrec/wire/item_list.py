"""The public list of items as it travels to devices that have data of their own: ids and titles, compressed.

A device needs it to know which row of the model an item of its own file is, and to name what it recommends. In
simulation every node reads prepared data, and nothing of this is sent.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from fedrec.core.errors import PacketError
from fedrec.core.tensors import Spec, Tensors, TensorSpec
from fedrec.wire.packet import PacketFormat
from fedrec.wire.protocol import frozen_format

ITEMS = "items"
MOST_ITEMS = 2**24
MOST_BYTES = 2**30
"""Of the list, unpacked: 107 for id and title of each of ten million items."""

_TEXT = rb'"(?:[^"\\]++|\\.)*+"'  # of JSON; whatever has matched is not looked at again, so it takes no memory


class ItemList(NamedTuple):
    """External ids and titles, by row of the catalogue."""

    ids: tuple[str, ...]
    titles: tuple[str, ...]


def pack_item_list(ids: Sequence[str], titles: Sequence[str]) -> Tensors:
    """The list as one compressed tensor of bytes. Raises PacketError (`too_large`) if no device would unpack it."""
    if len(ids) > MOST_ITEMS:
        raise PacketError(
            "too_large", f"the list of items has {len(ids):,} items, devices take {MOST_ITEMS:,}: leave out rare ones"
        )
    short = ["" if title == item else title for item, title in zip(ids, titles, strict=True)]
    text = json.dumps([list(ids), short], ensure_ascii=False, separators=(",", ":")).encode()
    if len(text) > MOST_BYTES:
        raise PacketError(
            "too_large", f"the list of items has {len(text):,} bytes, devices take {MOST_BYTES:,}: shorten the titles"
        )
    return {ITEMS: torch.from_numpy(np.frombuffer(zlib.compress(text, 9), dtype=np.uint8).copy())}


def item_list_format(length: int) -> PacketFormat:
    """Format of a packet of `length` bytes in all. Raises PacketError (`malformed`) if none has that length."""
    size = length - _format(0).size()
    if not 0 < size <= MOST_BYTES:
        raise PacketError("malformed", f"a list of items of {length} bytes: expected up to {MOST_BYTES}")
    return _format(size)


def item_list_packet(packed: Tensors) -> bytes:
    """The packed list as it crosses."""
    return _format(len(packed[ITEMS])).encode(0, 0, packed)


def _form(n_items: int) -> re.Pattern[bytes]:
    """What the JSON of a list of `n_items` items looks like: two lists of so many texts, without blanks."""
    column = rb"\[%b(?:,%b){%d}+\]" % (_TEXT, _TEXT, n_items - 1)
    return re.compile(rb"\[%b,%b\]" % (column, column), re.DOTALL)


def _format(size: int) -> PacketFormat:
    spec: Spec = {ITEMS: TensorSpec((size,), "uint8")}
    return frozen_format(spec)


def unpack_item_list(packed: Tensors, n_items: int) -> ItemList:
    """The inverse of `pack_item_list`.

    What a server sends may be small and grow to anything when it is unpacked and read. So its bytes are bounded, and
    then its form is checked, before anything is made of them: what is read takes some times as much memory.

    Raises PacketError (`malformed`) if it is not a list of `n_items` items, or longer than any device takes.
    """
    if not 0 < n_items <= MOST_ITEMS:
        raise PacketError("malformed", f"a list of {n_items:,} items: a device takes at most {MOST_ITEMS:,}")
    if packed.keys() != {ITEMS} or packed[ITEMS].dtype != torch.uint8 or packed[ITEMS].dim() != 1:
        raise PacketError("malformed", f"what should be the list of {n_items} items is none")
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(packed[ITEMS].numpy().tobytes(), MOST_BYTES)
        if not unpacker.eof or unpacker.unused_data:
            raise ValueError(f"more than {MOST_BYTES} bytes, or truncated")
        if not _form(n_items).fullmatch(text):
            raise ValueError(f"it does not hold an id and a title for each of {n_items} items, and nothing else")
        ids, titles = json.loads(text)
    except (zlib.error, ValueError) as error:
        raise PacketError("malformed", f"the list of items cannot be read: {error}") from error
    if len(set(ids)) != n_items:
        raise PacketError("malformed", "the list of items names an item twice")
    return ItemList(tuple(ids), tuple(title or item for item, title in zip(ids, titles, strict=True)))
