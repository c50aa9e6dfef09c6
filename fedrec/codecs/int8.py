"""One byte a number: 255 even steps between minus and plus the scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import override

from fedrec.codecs.rounding import RoundingCodec, RoundingConfig
from fedrec.core.registry import codecs

_STEPS = 127


@dataclass(frozen=True)
class Int8Config(RoundingConfig):
    """Configuration of `int8`."""

    name: Literal["int8"]


@codecs.register("int8")
class Int8Codec(RoundingCodec):
    """Stochastic rounding to k / 127 of the scale, k from -127 to 127."""

    config_class = Int8Config
    bits = 8
    coarsest = 1 / _STEPS

    @override
    def round(self, unit: Tensor, uniform: Tensor) -> Tensor:
        # The sum of 127 and almost 1 is 128 in float32, which one byte would hold as -128.
        return (unit * _STEPS + uniform).floor().clamp(max=_STEPS) / _STEPS

    @override
    def pack(self, rounded: Tensor) -> bytes:
        whole = (rounded * _STEPS).round().nan_to_num(0.0)  # beside a scale that is not finite, and stays so
        return whole.to(torch.int8).numpy().tobytes()

    @override
    def unpack(self, data: memoryview) -> Tensor:
        return torch.frombuffer(bytearray(data), dtype=torch.int8).float() / _STEPS
