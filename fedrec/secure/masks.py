"""The masks of a secure sum, as vectors of its ring: one that a participant has by itself, and those in common.

Of the mask that two have in common one adds what the other subtracts. So who is lost leaves in the sum of its
neighbours' parts just the opposite of what it would have brought, and adding that takes it off.
"""

from __future__ import annotations

from collections.abc import Iterable

from fedrec.secure import keys
from fedrec.secure.keys import Agreed
from fedrec.secure.ring import Ring, Vector


def own_mask(ring: Ring, seed: bytes, context: bytes) -> Vector:
    """The mask that the owner of a seed has by itself, in the sum that `context` names."""
    return ring.mask(keys.stream(keys.own_key(seed, context), ring.stream_bytes))


def common_masks(ring: Ring, agreed: Agreed, others: Iterable[bytes]) -> Vector:
    """The sum of what one participant adds and subtracts: a mask in common with the owner of each of these keys.

    Raises PacketError (`wrong_key`) if one of them is no key.
    """
    total = ring.zeros()
    for other in others:
        stream = ring.mask(keys.stream(agreed.key(other, keys.MASK), ring.stream_bytes))
        if agreed.adds(other):
            total.add(stream)
        else:
            total.subtract(stream)
    return total
