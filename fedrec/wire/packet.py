"""The packet: the only form in which tensors cross the network.

A packet is a fixed header, a few float64 scalars whose names both sides know, and the codec's bytes of tensors whose
specification both sides know. Nothing in it is executed or names a class. What a packet weighs is `len(packet)`,
and that is what the byte meter counts.

Layout (little-endian): magic 4s, version u16, kind u8, phase u8, round u32, digest of specification and codec with its
settings 8s, number of scalars u16, reserved u16 (zero), payload length u64, CRC-32 of all the rest of the packet u32.
"""

from __future__ import annotations

import dataclasses
import json
import struct
import zlib
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from fedrec.codecs.base import Codec
from fedrec.core.errors import PacketError
from fedrec.core.tensors import Spec, Tensors, matches, spec_digest

_MAGIC = b"FRPK"
_VERSION = 2
"""Version 1 had its checksum over what follows the header alone."""
_HEADER = struct.Struct("<4sHBBI8sHHQ")
_CHECKSUM = struct.Struct("<I")
_START = _HEADER.size + _CHECKSUM.size


class Kind(IntEnum):
    """What a packet is for."""

    MODEL = 1
    FROZEN = 2
    UPDATE = 3
    METRICS = 4
    COUNTS = 5
    MERGED = 6
    SECURE = 7
    CROSSING = 8


class Packet(NamedTuple):
    """A decoded packet."""

    kind: Kind
    phase: int
    round: int
    scalars: tuple[float, ...]
    tensors: Tensors


class PacketFormat(NamedTuple):
    """What both sides agree on before a packet is sent: its kind, specification, codec and number of scalars."""

    kind: Kind
    spec: Spec
    codec: Codec
    scalars: int

    def digest(self) -> bytes:
        """8 bytes that name specification, codec and its settings; the first thing that is compared."""
        settings = dataclasses.asdict(self.codec.config)
        name = str(settings.pop("name"))
        # A codec without settings is named as before there were any, and packets that were kept stay readable.
        return spec_digest(self.spec, name, *([json.dumps(settings, sort_keys=True)] if settings else []))

    @property
    def head(self) -> int:
        """Bytes of a packet without its tensors: header and scalars."""
        return _START + 8 * self.scalars

    def size(self) -> int:
        """Exact length in bytes of every packet of this format; the most, where the codec's bytes vary."""
        return self.head + self.codec.size(self.spec)

    def least(self) -> int:
        """The fewest bytes of a packet of this format: `size`, but where the codec's bytes vary."""
        return self.head + self.codec.least(self.spec)

    def encode(
        self, phase: int, round: int, tensors: Tensors, scalars: Sequence[float] = (), seed: int | None = 0
    ) -> bytes:
        """The packet's bytes. `seed` feeds the codec's stochastic rounding, if it has any; None: to the nearest.

        Raises:
            ValueError: Scalars or tensors are not those of the format: nothing is cast or left out without a word.
        """
        if len(scalars) != self.scalars:
            raise ValueError(f"a {self.kind.name} packet has {self.scalars} scalars, not {len(scalars)}")
        if tensors.keys() != self.spec.keys():
            raise ValueError(f"a {self.kind.name} packet has tensors {sorted(self.spec)}, not {sorted(tensors)}")
        for name, tensor in tensors.items():
            if not matches(self.spec[name], tensor):
                came = f"{list(tensor.shape)} {tensor.dtype}"
                raise ValueError(f"{name!r} is {came}, expected {list(self.spec[name].shape)} {self.spec[name].dtype}")
        payload = self.codec.encode(tensors, self.spec, seed)
        body = struct.pack(f"<{len(scalars)}d", *scalars) + payload
        header = _HEADER.pack(_MAGIC, _VERSION, self.kind, phase, round, self.digest(), len(scalars), 0, len(payload))
        return header + _CHECKSUM.pack(_checksum(header, body)) + body

    def decode(self, data: bytes | memoryview, *, phase: int | None = None, round: int | None = None) -> Packet:
        """The packet in `data`, checked; of `phase` and `round` if given.

        Raises:
            PacketError: `oversized` (longer than any packet of this format), `malformed` (not a packet, truncated,
                damaged), `other_version` (made by a fedrec with another layout of packets), `wrong_spec` (of another
                specification, codec, setting of the codec, or kind), `wrong_round` (of another round or phase: late or
                replayed).
        """
        view = memoryview(data)
        if len(view) < _START:
            raise PacketError("malformed", f"a packet has at least {_START} bytes, {len(view)} came")
        magic, version, kind, sent_phase, sent_round, digest, scalars, zero, length = _HEADER.unpack_from(view)
        if magic != _MAGIC or zero:
            raise PacketError("malformed", f"not a packet: it starts with {magic!r}")
        if version != _VERSION:
            raise PacketError(
                "other_version",
                f"a packet of version {version} came, this fedrec speaks version {_VERSION}: install the same fedrec "
                "on both sides; what a fedrec of another version has written cannot be read",
            )
        if kind != self.kind or digest != self.digest() or scalars != self.scalars:
            raise PacketError(
                "wrong_spec",
                f"expected a {self.kind.name} packet of specification {self.digest().hex()}, {self.scalars} scalars, "
                f"got kind {kind}, {digest.hex()}, {scalars}: the other side trains another model, or its codec has "
                "other settings",
            )
        if len(view) > self.size():
            raise PacketError("oversized", f"{len(view)} bytes came, a {self.kind.name} packet has {self.size()}")
        body = view[_START:]
        if len(body) != 8 * scalars + length or len(view) < self.least():
            raise PacketError("malformed", f"the packet has {len(view)} bytes, {self.size()} were expected: truncated")
        if (_checksum(view[: _HEADER.size], body),) != _CHECKSUM.unpack_from(view, _HEADER.size):
            raise PacketError("malformed", "the packet's checksum does not fit its content: damaged on the way")
        if (round is not None and sent_round != round) or (phase is not None and sent_phase != phase):
            raise PacketError(
                "wrong_round", f"expected round {round} of phase {phase}, got round {sent_round} of phase {sent_phase}"
            )
        numbers = struct.unpack_from(f"<{scalars}d", body)
        tensors = self.codec.decode(body[8 * scalars :], self.spec)
        return Packet(Kind(kind), sent_phase, sent_round, numbers, tensors)


def _checksum(header: bytes | memoryview, body: bytes | memoryview) -> int:
    """CRC-32 of a packet without the place where it stands."""
    return zlib.crc32(body, zlib.crc32(header))


def of_another_version(data: bytes) -> bool:
    """Whether these bytes are a packet that another fedrec has made, whose layout this one does not read."""
    return data[:4] == _MAGIC and int.from_bytes(data[4:6], "little") != _VERSION


def to_array(packet: bytes) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """The packet as one flat array: the runtime's cost is per array, not per byte."""
    return np.frombuffer(packet, dtype=np.uint8)
