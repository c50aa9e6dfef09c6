"""The plain codec: every number as it is, little-endian, nothing lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from typing_extensions import override

from fedrec.codecs.base import Codec
from fedrec.core.registry import MemberConfig, codecs
from fedrec.core.tensors import DTYPES, Spec, Tensors


@dataclass(frozen=True)
class Float32Config(MemberConfig):
    """The plain codec has nothing to choose."""

    name: Literal["float32"]


@codecs.register("float32")
class Float32Codec(Codec):
    """Each tensor's own type, unchanged (trained tensors are float32)."""

    config_class = Float32Config

    @override
    def size(self, spec: Spec) -> int:
        return sum(entry.nbytes for entry in spec.values())

    @override
    def encode(self, tensors: Tensors, spec: Spec, seed: int | None) -> bytes:
        return b"".join(tensors[name].detach().cpu().contiguous().numpy().tobytes() for name in sorted(spec))

    @override
    def decode(self, data: memoryview, spec: Spec) -> Tensors:
        tensors: Tensors = {}
        at = 0
        for name in sorted(spec):
            entry = spec[name]
            raw = bytearray(data[at : at + entry.nbytes])
            tensors[name] = (
                torch.frombuffer(raw, dtype=DTYPES[entry.dtype]).reshape(entry.shape) if raw else entry.zeros()
            )
            at += entry.nbytes
        return tensors
