"""What `int8` and `int4` share: even steps between minus and plus the scale."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from fedrec.codecs.rounding import RoundingCodec


class EvenCodec(RoundingCodec):
    """Stochastic rounding to k / steps of the scale, k from -steps to steps."""

    steps: ClassVar[int]

    @override
    def round(self, unit: Tensor, uniform: Tensor) -> Tensor:
        # The sum of 127 and almost 1 is 128 in float32, which one byte would hold as -128.
        return (unit * self.steps).add_(uniform).floor_().clamp_(max=self.steps).div_(self.steps)

    def whole(self, rounded: Tensor) -> Tensor:
        """The steps of rounded numbers, int8 and flat; none beside a scale that is not finite, and stays so."""
        return (rounded.flatten() * self.steps).round().nan_to_num(0.0).to(torch.int8)
