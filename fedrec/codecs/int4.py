"""Half a byte a number: 15 even steps between minus and plus the scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from fedrec.codecs.rounding import RoundingCodec, RoundingConfig
from fedrec.core.registry import codecs

_STEPS = 7


@dataclass(frozen=True)
class Int4Config(RoundingConfig):
    """Configuration of `int4`."""

    name: Literal["int4"]


@codecs.register("int4")
class Int4Codec(RoundingCodec):
    """Stochastic rounding to k / 7 of the scale, k from -7 to 7; two numbers in a byte, the first in its upper half.

    So coarse that every row should have a scale of its own, which is the default.
    """

    config_class = Int4Config
    bits = 4
    coarsest = 1 / _STEPS

    @override
    def round(self, unit: Tensor, uniform: Tensor) -> Tensor:
        return (unit * _STEPS + uniform).floor().clamp(max=_STEPS) / _STEPS

    @override
    def pack(self, rounded: Tensor) -> bytes:
        whole = (rounded.flatten() * _STEPS).round().nan_to_num(0.0)  # beside a scale that is not finite, and stays so
        numbers = whole.numpy().astype(np.int8).view(np.uint8) & 15
        even = np.concatenate([numbers, np.zeros(len(numbers) % 2, dtype=np.uint8)])
        pairs: NDArray[np.uint8] = even[::2] << 4 | even[1::2]
        return pairs.tobytes()

    @override
    def unpack(self, data: memoryview) -> Tensor:
        raw = np.frombuffer(data, dtype=np.uint8)
        signed = np.stack([raw, raw << 4], axis=1).view(np.int8) >> 4  # an arithmetic shift, which keeps the sign
        return torch.from_numpy(signed.astype(np.float32).ravel()) / _STEPS
