"""Two bytes a number: ten bits of mantissa, and an exponent of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import override

from fedrec.codecs.rounding import RoundingCodec, RoundingConfig
from fedrec.core.registry import codecs

_SMALLEST = 2.0**-14
"""Of the normal numbers of float16: below it, and so below 1/16,384 of the scale, steps do not become finer."""
_BITS = 10


@dataclass(frozen=True)
class Float16Config(RoundingConfig):
    """Configuration of `float16`."""

    name: Literal["float16"]


@codecs.register("float16")
class Float16Codec(RoundingCodec):
    """Stochastic rounding to the two nearest numbers of float16, after division by the scale."""

    config_class = Float16Config
    bits = 16
    coarsest = 2.0**-_BITS

    @override
    def round(self, unit: Tensor, uniform: Tensor) -> Tensor:
        # frexp: |unit| in [2**(exponent - 1), 2**exponent), where float16's numbers are 2**(exponent - 1 - 10) apart.
        exponent = torch.frexp(unit.abs().clamp(min=_SMALLEST)).exponent
        step = torch.ldexp(torch.ones_like(unit), exponent - 1 - _BITS)
        return (unit / step + uniform).floor() * step

    @override
    def pack(self, rounded: Tensor) -> bytes:
        return rounded.half().numpy().tobytes()

    @override
    def unpack(self, data: memoryview) -> Tensor:
        return torch.frombuffer(bytearray(data), dtype=torch.float16).float()
