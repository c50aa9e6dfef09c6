"""What lossy codecs share: numbers are divided by the largest of their tensor, or row, and rounded at random.

Rounding is stochastic: to the neighbour above with the probability that leaves the mean where it was, so that an
average over users or rounds keeps no error (Gupta et al., ICML 2015; Alistarh et al., QSGD, NeurIPS 2017). The draw of
a number is a function of the user's seed, the tensor's name and the number's place in it, whoever is rounded beside
it. Zero stays zero: rows that a user never touched do not move. Tensors of integers travel as they are.
"""

from __future__ import annotations

import zlib
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from fedrec.codecs.base import Codec
from fedrec.core.registry import MemberConfig
from fedrec.core.rng import Seed, counter_bits, element_uniform
from fedrec.core.tensors import DTYPES, Spec, TableSpec, Tensors, TensorSpec


@dataclass(frozen=True)
class RoundingConfig(MemberConfig):
    """What the configuration of every lossy codec has.

    Attributes:
        scale: One float32 for every `tensor`, or for every `row` of a table (and every other tensor): larger packets,
            smaller errors where rows differ in size.
    """

    scale: Literal["tensor", "row"]


class RoundingCodec(Codec):
    """A codec that says how numbers in [-1, 1] are rounded, and what a rounded one looks like in bytes."""

    config: RoundingConfig
    exact = False
    bits: ClassVar[int]
    """Of one number."""
    coarsest: ClassVar[float]
    """The largest distance between two neighbours that a number in [-1, 1] is rounded to."""

    def __init__(self, config: RoundingConfig, *, steady: bool = False) -> None:
        """With `steady`, every scale is a power of two, the smallest that will do.

        So a tensor of which little changes keeps its scale, and what did not change stays as it was rounded before.
        """
        super().__init__(config)
        self._steady = steady

    def steady(self) -> Self:
        """The same codec with steady scales."""
        return type(self)(self.config, steady=True)

    def _scale(self, rows: Tensor) -> Tensor:
        """Of numbers [n, m]: the scale of each row, float32 [n, 1]; 0 where all are 0."""
        if not rows.numel():
            return torch.zeros(len(rows), 1)
        largest = rows.abs().amax(1, keepdim=True)
        if not self._steady:
            return largest
        part, exponent = torch.frexp(largest)  # part in [0.5, 1)
        power = torch.ldexp(torch.ones_like(largest), exponent - (part == 0.5).to(exponent))
        return torch.where((largest > 0) & largest.isfinite(), power, largest)  # infinity stays what it is

    @abstractmethod
    def round(self, unit: Tensor, uniform: Tensor) -> Tensor:
        """Numbers in [-1, 1] as numbers that a packet can hold; `uniform` in [0, 1) decides between two neighbours."""

    @abstractmethod
    def pack(self, rounded: Tensor) -> bytes:
        """Rounded numbers as bytes."""

    @abstractmethod
    def unpack(self, data: memoryview) -> Tensor:
        """The inverse of `pack`, flat; of any bytes. More numbers than were packed may fill up the last byte."""

    def by_row(self, spec: TensorSpec) -> bool:
        """Whether every row of the tensor has a scale of its own."""
        return self.config.scale == "row" and isinstance(spec, TableSpec)

    @override
    def of_sum(self) -> Codec:
        """One update stays of its codec's numbers when it is weighed, for its scale is; a sum of several is not."""
        from fedrec.codecs.float32 import Float32Codec, Float32Config

        return Float32Codec(Float32Config("float32"))

    def rounded(self, values: Tensor, scale: Tensor, seed: NDArray[np.uint64] | None, places: Tensor) -> Tensor:
        """What the other side would decode of `values` [n, ...].

        Args:
            values: The numbers.
            scale: The largest absolute number of the tensor or row to which each belongs; broadcasts with `values`.
            seed: uint64 [n] (`tensor_seed`), one for each row of `values`, or one for all; None: to the nearest.
            places: int64 or int32 (`element_uniform`), broadcasts to `values`: each number's place in its tensor.
        """
        scale = scale.float()
        divisor = torch.where(scale > 0, scale, torch.ones_like(scale))
        uniform = torch.tensor(0.5) if seed is None else element_uniform(seed, places)
        return self.round(values.float() / divisor, uniform).mul_(divisor).to(values.dtype)

    @override
    def size(self, spec: Spec) -> int:
        return sum(sum(self._sizes(entry)) for entry in spec.values())

    def _sizes(self, spec: TensorSpec) -> tuple[int, int]:
        """Bytes of the scales, and of the numbers."""
        if not DTYPES[spec.dtype].is_floating_point:
            return 0, spec.nbytes
        return 4 * (spec.shape[0] if self.by_row(spec) else 1), (self.bits * spec.size + 7) // 8

    @override
    def encode(self, tensors: Tensors, spec: Spec, seed: int | None) -> bytes:
        parts = []
        for name in sorted(spec):
            tensor = tensors[name].detach().cpu().contiguous()
            if not tensor.is_floating_point():
                parts.append(tensor.numpy().tobytes())
                continue
            rows = (tensor.flatten(1) if self.by_row(spec[name]) else tensor.reshape(1, -1)).float()
            scale = self._scale(rows)
            divisor = torch.where(scale > 0, scale, torch.ones_like(scale))
            uniform = torch.full_like(rows, 0.5) if seed is None else _draws(seed, name, rows)
            parts += [scale.numpy().tobytes(), self.pack(self.round(rows / divisor, uniform))]
        return b"".join(parts)

    @override
    def decode(self, data: memoryview, spec: Spec) -> Tensors:
        tensors: Tensors = {}
        at = 0
        for name in sorted(spec):
            entry, (scales, numbers) = spec[name], self._sizes(spec[name])
            dtype = DTYPES[entry.dtype]
            head, body = bytearray(data[at : at + scales]), data[at + scales : at + scales + numbers]
            at += scales + numbers
            if not numbers:
                tensors[name] = entry.zeros()
            elif not dtype.is_floating_point:
                tensors[name] = torch.frombuffer(bytearray(body), dtype=dtype).reshape(entry.shape)
            else:
                scale = torch.frombuffer(head, dtype=torch.float32)
                divisor = torch.where(scale == 0, torch.ones_like(scale), scale)
                values = self.unpack(body)[: entry.size].reshape(len(scale), -1) * divisor[:, None]
                tensors[name] = values.to(dtype).reshape(entry.shape)
        return tensors


def _draws(seed: int, name: str, rows: Tensor) -> Tensor:
    places = torch.arange(rows.numel()).reshape(1, -1)
    return element_uniform(tensor_seed(seed, name), places).reshape(rows.shape)


def tensor_seed(seed: Seed, name: str) -> NDArray[np.uint64]:
    """The seed of one tensor of a packet, or of the packets of several users: uint64 [n] for n seeds."""
    return counter_bits(seed, zlib.crc32(name.encode()))
