"""What crosses the network for a secure sum, stage by stage: packets of bytes, of lengths that both sides know.

1. `announced`: what each participant announces, signed by its identity.
2. Down the `roll` of all participants, and what a node's neighbours announced; up the shares of its secrets, `sealed`
   for each neighbour.
3. Down what the neighbours sealed for it; up its part of the sum, `masked`.
4. Down what became of everybody (`status`); up a share of one secret of each neighbour, `opened`.

A packet says its phase and round, so that none is of use in another sum.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray

from fedrec.codecs.float32 import Float32Codec, Float32Config
from fedrec.core.tensors import TensorSpec
from fedrec.secure.graph import DIGEST_BYTES, Graph
from fedrec.secure.keys import ANNOUNCED_BYTES, KEY_BYTES, SEALED_BYTES, SEED_BYTES
from fedrec.secure.ring import Ring
from fedrec.wire.packet import Kind, PacketFormat


class Status(IntEnum):
    """What has become of a participant."""

    ABSENT = 0
    """It sent no shares: no mask in the sum is in common with it."""
    SURVIVED = 1
    """Its part is in the sum: its own mask has to be taken off."""
    DROPPED = 2
    """It sent shares, and no part: the masks that others have in common with it have to be."""


def _bytes(**shapes: tuple[int, ...]) -> PacketFormat:
    spec = {name: TensorSpec(shape, "uint8") for name, shape in shapes.items()}
    return PacketFormat(Kind.SECURE, spec, Float32Codec(Float32Config("float32")), 0)


def encoded(form: PacketFormat, phase: int, round: int, **arrays: NDArray[np.uint8]) -> bytes:
    """A packet of one of these formats, of arrays of bytes by name."""
    return form.encode(phase, round, {name: torch.from_numpy(array.copy()) for name, array in arrays.items()})


def announced_format() -> PacketFormat:
    """Client to server: what a participant announces."""
    return _bytes(announced=(ANNOUNCED_BYTES,))


def roll_format(participants: int, graph: Graph) -> PacketFormat:
    """Server to client: a line of everybody, ascending, and how many users each was asked for (little-endian).

    Then the whole of what the node's neighbours announced, in the order of the roll.
    """
    return _bytes(
        roll=(participants, DIGEST_BYTES), users=(participants, 4), neighbours=(graph.degree, ANNOUNCED_BYTES)
    )


def sealed_up_format(graph: Graph) -> PacketFormat:
    """Client to server: shares sealed for each neighbour, and by what the own mask's seed is recognised."""
    return _bytes(sealed=(graph.degree, SEALED_BYTES), commitment=(KEY_BYTES,))


def sealed_down_format(graph: Graph) -> PacketFormat:
    """Server to client: what each neighbour has sealed for the node, and which of them has (1) or not (0)."""
    return _bytes(sealed=(graph.degree, SEALED_BYTES), present=(graph.degree,))


def masked_format(ring: Ring) -> PacketFormat:
    """Client to server: a part of the sum, as the ring packs it."""
    return _bytes(scalars=(ring.scalar_bytes,), numbers=(ring.packed_bytes,))


def status_format(participants: int) -> PacketFormat:
    """Server to client: the `Status` of everybody on the roll. Nobody can be in two lists: there is one."""
    return _bytes(status=(participants,))


def opened_format(graph: Graph) -> PacketFormat:
    """Client to server: of each neighbour a share, or none, and which it is.

    `kinds` is that neighbour's `Status`: of one who survived a share of its own mask's seed, of one who dropped out of
    the seed of the masks in common with it; 0 where there is no share.
    """
    return _bytes(kinds=(graph.degree,), shares=(graph.degree, SEED_BYTES))
