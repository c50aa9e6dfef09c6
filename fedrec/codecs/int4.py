"""Half a byte a number: 15 even steps between minus and plus the scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from fedrec.codecs.even import EvenCodec
from fedrec.codecs.rounding import RoundingConfig
from fedrec.core.registry import codecs


@dataclass(frozen=True)
class Int4Config(RoundingConfig):
    """Configuration of `int4`."""

    name: Literal["int4"]


@codecs.register("int4")
class Int4Codec(EvenCodec):
    """Two numbers in a byte, the first in its upper half.

    So coarse that every row should have a scale of its own, which is the default.
    """

    config_class = Int4Config
    bits = 4
    steps = 7
    coarsest = 1 / steps

    @override
    def pack(self, rounded: Tensor) -> bytes:
        numbers = self.whole(rounded).numpy().view(np.uint8) & 15
        even = np.concatenate([numbers, np.zeros(len(numbers) % 2, dtype=np.uint8)])
        pairs: NDArray[np.uint8] = even[::2] << 4 | even[1::2]
        return pairs.tobytes()

    @override
    def unpack(self, data: memoryview) -> Tensor:
        raw = np.frombuffer(data, dtype=np.uint8)
        signed = np.stack([raw, raw << 4], axis=1).view(np.int8) >> 4  # an arithmetic shift, which keeps the sign
        return torch.from_numpy(signed.astype(np.float32).ravel()) / self.steps
