"""The ring of a secure sum: whole numbers modulo a power of two that the sum, and no more, fits into.

A participant's part is a vector of two sections: what goes with an update (weight, counts, loss), as 64-bit numbers of
2**-20ths, and the update on the grid, as numbers of just so many bits that the sum of all participants cannot leave
them. Numbers are added in words of 32 or 64 bits, which wrap around by themselves; on their way they are packed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray

from fedrec.codecs.bits import pack_bits, packed_size, unpack_bits
from fedrec.core.errors import PacketError
from fedrec.core.tensors import Spec, Tensors

SCALAR_UNITS = 2**20
"""Parts of one in which what goes with an update is added up."""

_WRAP = 40
_AT_ONCE = 2**16
_SCALAR_BYTES = 8
_WORD_BITS = 32


class Vector:
    """A part of a sum, or a sum: numbers that wrap around.

    Attributes:
        scalars: uint64.
        numbers: uint32 or uint64, of which the ring's bits count.
    """

    def __init__(self, scalars: NDArray[np.uint64], numbers: NDArray[np.unsignedinteger]) -> None:
        """See the attributes."""
        self.scalars, self.numbers = scalars, numbers

    def add(self, other: Vector) -> None:
        """Add another one, in place."""
        self.scalars += other.scalars
        self.numbers += other.numbers

    def subtract(self, other: Vector) -> None:
        """Subtract another one, in place."""
        self.scalars -= other.scalars
        self.numbers -= other.numbers


@dataclass(frozen=True)
class Ring:
    """The numbers of one secure sum.

    Attributes:
        spec: What travels, in the order of its sorted names.
        scalars: Numbers that go with it.
        bits: Of a number of the update.
    """

    spec: Spec
    scalars: int
    bits: int

    @property
    def numbers(self) -> int:
        """How many numbers an update has."""
        return sum(entry.size for entry in self.spec.values())

    @property
    def packed_bytes(self) -> int:
        """Of the numbers of an update on their way."""
        return packed_size(self.numbers, self.bits)

    @property
    def scalar_bytes(self) -> int:
        """Of what goes with it."""
        return _SCALAR_BYTES * self.scalars

    @property
    def _word(self) -> np.dtype[np.unsignedinteger]:
        return np.dtype("<u4" if self.bits <= _WORD_BITS else "<u8")

    @property
    def stream_bytes(self) -> int:
        """Bytes of a stream that `mask` makes a vector of."""
        return self.scalar_bytes + self._word.itemsize * self.numbers

    def mask(self, stream: bytes) -> Vector:
        """A vector of `stream_bytes` random bytes."""
        scalars = np.frombuffer(stream, dtype="<u8", count=self.scalars)
        return Vector(scalars, np.frombuffer(stream, dtype=self._word, offset=self.scalar_bytes))

    def zeros(self) -> Vector:
        """The sum of nobody."""
        return Vector(np.zeros(self.scalars, dtype=np.uint64), np.zeros(self.numbers, dtype=self._word))

    def vector(self, tensors: Tensors, scalars: Sequence[float]) -> Vector:
        """Whole numbers, and what goes with them, as a part of a sum."""
        flat = [tensors[name].detach().cpu().reshape(-1).to(torch.int64).numpy() for name in sorted(self.spec)]
        units = [round(Fraction(value) * SCALAR_UNITS) % 2**64 for value in scalars]
        return Vector(np.array(units, dtype=np.uint64), np.concatenate(flat).astype(self._word))

    def values(self, total: Vector) -> tuple[Tensors, tuple[float, ...]]:
        """The inverse: whole numbers between -2**(bits - 1) and 2**(bits - 1), int64, and what goes with them."""
        low = total.numbers.astype(np.int64) & (2**self.bits - 1)
        signed = low - (low >> (self.bits - 1) << self.bits)
        tensors, at = {}, 0
        for name in sorted(self.spec):
            entry = self.spec[name]
            tensors[name] = torch.from_numpy(signed[at : at + entry.size].reshape(entry.shape).copy())
            at += entry.size
        return tensors, tuple((total.scalars.astype(np.int64) / SCALAR_UNITS).tolist())

    def packed(self, vector: Vector) -> Mapping[str, NDArray[np.uint8]]:
        """As it travels: uint8 `scalars` and `numbers`."""
        low = vector.numbers.astype(np.int64) & (2**self.bits - 1)
        parts = [pack_bits(low[at : at + _AT_ONCE], self.bits) for at in range(0, len(low), _AT_ONCE)]
        numbers = np.frombuffer(b"".join(parts), dtype=np.uint8)
        return {"scalars": vector.scalars.astype("<u8").view(np.uint8), "numbers": numbers}

    def unpacked(self, scalars: NDArray[np.uint8], numbers: NDArray[np.uint8]) -> Vector:
        """The inverse, of `scalar_bytes` and `packed_bytes` bytes.

        Raises PacketError (`malformed`) if what is left of the last byte is not zero.
        """
        data, parts, step = memoryview(numbers.tobytes()), [], packed_size(_AT_ONCE, self.bits)
        for at in range(0, self.numbers, _AT_ONCE):
            start = at // _AT_ONCE * step
            count = min(_AT_ONCE, self.numbers - at)
            parts.append(unpack_bits(data[start : start + step], count, self.bits).astype(self._word))
        if not parts:
            raise PacketError("malformed", "a sum of no numbers has nothing to unpack")
        return Vector(np.frombuffer(scalars.tobytes(), dtype="<u8").copy(), np.concatenate(parts))


def width(users: int, most: float, variance: float, numbers: int) -> int:
    """The bits of a ring that the sum of so many users fits into: for certain, or, with noise, but for 2**-40.

    Noise is a sum of Skellam numbers, the difference of two Poisson ones: Bernstein's inequality bounds it by
    `exp(-t**2 / (2 (variance + t / 3)))`. The probability is that any of all the numbers wraps around.

    Args:
        users: How many there are at most.
        most: The largest number of one user, in points of the grid.
        variance: Of one user's share of noise, in points of the grid, squared; 0: there is none.
        numbers: How many numbers an update has.

    Raises ValueError if no word is wide enough.
    """
    bound = float(users * math.ceil(most))
    if variance > 0:
        nats = math.log(2 * numbers) + _WRAP * math.log(2)
        bound += nats / 3 + math.sqrt((nats / 3) ** 2 + 2 * users * variance * nats)
    bits = math.ceil(math.log2(2 * bound + 1))
    if bits > 62:
        raise ValueError(f"a sum of {users} users needs {bits} bits a number, at most 62 can be added up")
    return bits
