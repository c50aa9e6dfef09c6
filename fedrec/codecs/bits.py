"""Whole numbers of few bits, one after the other, the highest bit first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import PacketError


def width(values: int) -> int:
    """Bits of one of so many values; 0 of the only one."""
    return (values - 1).bit_length()


def packed_size(count: int, bits: int) -> int:
    """Bytes of so many numbers."""
    return (count * bits + 7) // 8


def pack_bits(numbers: NDArray[np.int64], bits: int) -> bytes:
    """The numbers, each below 2 ** bits; what is left of the last byte is zero."""
    places = np.arange(bits - 1, -1, -1)
    return np.packbits((numbers[:, None] >> places & 1).astype(np.uint8)).tobytes()


def unpack_bits(data: memoryview, count: int, bits: int) -> NDArray[np.int64]:
    """The inverse, int64 [count]. Raises PacketError (`malformed`) if the rest of the last byte is not zero."""
    raw = np.unpackbits(np.frombuffer(data, dtype=np.uint8))
    if raw[count * bits :].any():
        raise PacketError("malformed", f"{count} numbers of {bits} bits are followed by bits that are not zero")
    weights = 1 << np.arange(bits - 1, -1, -1, dtype=np.int64)
    numbers: NDArray[np.int64] = raw[: count * bits].reshape(count, bits).astype(np.int64) @ weights
    return numbers
