"""The list of items that sites are sent says what the catalogue says, or is refused."""

from __future__ import annotations

import json
import tracemalloc
import zlib

import numpy as np
import pytest
import torch

from fedrec.core.errors import PacketError
from fedrec.core.tensors import Tensors, content_digest
from fedrec.wire import item_list
from fedrec.wire.item_list import (
    ITEMS,
    MOST_BYTES,
    MOST_ITEMS,
    item_list_format,
    item_list_packet,
    pack_item_list,
    unpack_item_list,
)

IDS = ["1", "x\ny", "ünï", '"', "5"]
TITLES = ["One", "Title\twith tab", "ünï", "", "Five"]


def packed(content: object) -> Tensors:
    text = content if isinstance(content, bytes) else json.dumps(content, separators=(",", ":")).encode()
    return {ITEMS: torch.from_numpy(np.frombuffer(zlib.compress(text), dtype=np.uint8).copy())}


def test_ids_and_titles_cross_as_they_are() -> None:
    made = pack_item_list(IDS, TITLES)
    packet = item_list_packet(made)
    received = item_list_format(len(packet)).decode(packet).tensors
    assert content_digest(received) == content_digest(made)
    listed = unpack_item_list(received, len(IDS))
    assert listed.ids == tuple(IDS)
    assert listed.titles == ("One", "Title\twith tab", "ünï", '"', "Five")


def test_a_thousand_titles_take_a_fraction_of_their_length() -> None:
    titles = [f"The Film of the Number {n} (19{n % 100:02d})" for n in range(1000)]
    packet = item_list_packet(pack_item_list([str(n) for n in range(1000)], titles))
    assert len(packet) < sum(map(len, titles)) / 3


BAD: dict[str, tuple[Tensors, str]] = {
    "not compressed": ({ITEMS: torch.arange(9, dtype=torch.uint8)}, "cannot be read"),
    "truncated": ({ITEMS: packed([["a", "b"], ["", ""]])[ITEMS][:-3]}, "cannot be read"),
    "something behind it": (
        {ITEMS: torch.cat([packed([["a", "b"], ["", ""]])[ITEMS], torch.ones(1, dtype=torch.uint8)])},
        "cannot be read",
    ),
    "no JSON": (packed(b"{"), "cannot be read"),
    "deep JSON": (packed(b"[" * 100_000), "cannot be read"),
    "one column": (packed([["a", "b"]]), "cannot be read"),
    "a number": (packed([["a", 5], ["", ""]]), "an id and a title for each of 2 items"),
    "too few": (packed([["a"], [""]]), "an id and a title for each of 2 items"),
    "more titles": (packed([["a", "b"], ["", "", ""]]), "an id and a title for each of 2 items"),
    "blanks": (packed(b'[["a", "b"],["",""]]'), "an id and a title for each of 2 items"),
    "a line end in a text": (packed(b'[["a\nb","b"],["",""]]'), "cannot be read: Invalid control character"),
    "no UTF-8": (packed(b'[["a\xff","b"],["",""]]'), "cannot be read: 'utf-8' codec can't decode"),
    "an item twice": (packed([["a", "a"], ["", ""]]), "names an item twice"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_list_is_refused(case: str) -> None:
    tensors, why = BAD[case]
    with pytest.raises(PacketError, match=why) as caught:
        unpack_item_list(tensors, 2)
    assert caught.value.reason == "malformed"


def test_a_list_that_would_fill_the_memory_is_refused_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = packed([["a" * 50_000, "b"], ["", ""]])
    assert bomb[ITEMS].numel() < 1000
    monkeypatch.setattr(item_list, "MOST_BYTES", 10_000)
    with pytest.raises(PacketError, match="more than 10000 bytes"):
        unpack_item_list(bomb, 2)
    with pytest.raises(PacketError, match="devices take 10,000: shorten the titles"):
        pack_item_list(["a", "b"], ["t" * 20_000, ""])
    for length in (0, 5, 11_000):
        with pytest.raises(PacketError, match="a list of items of"):
            item_list_format(length)


@pytest.mark.parametrize("bomb", [b"[[" + b"{}," * 10**6, b'[["ab' + b'","ab' * 10**6, b'[["' + b'\\\\"' * 10**6])
def test_what_would_grow_when_it_is_read_is_refused_before(bomb: bytes) -> None:
    """A thousandth of it comes, and as Python's lists and texts it would take ten times as much."""
    tensors = packed(bomb)
    assert tensors[ITEMS].numel() < len(bomb) / 200
    tracemalloc.start()
    with pytest.raises(PacketError, match="an id and a title for each of 2 items") as caught:
        unpack_item_list(tensors, 2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert caught.value.reason == "malformed"
    assert peak < 3 * len(bomb)


def test_more_items_than_a_device_takes_are_refused_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_ITEMS >= 10**7
    assert MOST_BYTES >= 100 * 10**7, "there is room for ten million"
    with pytest.raises(PacketError, match="a device takes at most"):
        unpack_item_list({}, 2**31 - 1)
    monkeypatch.setattr(item_list, "MOST_ITEMS", 1)
    with pytest.raises(PacketError, match="2 items, devices take 1"):
        pack_item_list(["a", "b"], ["", ""])
