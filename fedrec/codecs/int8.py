"""One byte a number: 255 even steps between minus and plus the scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import override

from fedrec.codecs.even import EvenCodec
from fedrec.codecs.rounding import RoundingConfig
from fedrec.core.registry import codecs


@dataclass(frozen=True)
class Int8Config(RoundingConfig):
    """Configuration of `int8`."""

    name: Literal["int8"]


@codecs.register("int8")
class Int8Codec(EvenCodec):
    """One byte a number."""

    config_class = Int8Config
    bits = 8
    steps = 127
    coarsest = 1 / steps

    @override
    def pack(self, rounded: Tensor) -> bytes:
        return self.whole(rounded).numpy().tobytes()

    @override
    def unpack(self, data: memoryview) -> Tensor:
        return torch.frombuffer(bytearray(data), dtype=torch.int8).float() / self.steps
