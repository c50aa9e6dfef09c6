"""The contract of a codec: tensors of a known specification to bytes and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from fedrec.core.registry import MemberConfig
from fedrec.core.tensors import Spec, Tensors


class Codec(ABC):
    """A member of the family `codec`. Names and shapes are not sent: both sides hold the specification."""

    config_class: ClassVar[type[MemberConfig]]

    exact: ClassVar[bool] = True
    """Whether what is decoded is what was encoded, to the bit. One that is not derives from `RoundingCodec`
    (`fedrec.codecs.rounding`): engines round users' updates with such codecs alone."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def of_sum(self) -> Codec:
        """The codec of the weighted sum of several users' updates, each of which was rounded by this one."""
        return self

    @abstractmethod
    def size(self, spec: Spec) -> int:
        """Exact number of bytes that `encode` makes of any tensors of this specification; the most, with a `least`."""

    def least(self, spec: Spec) -> int:
        """The fewest: `size`, but for a codec whose bytes become fewer with what is in the tensors."""
        return self.size(spec)

    @abstractmethod
    def encode(self, tensors: Tensors, spec: Spec, seed: int | None) -> bytes:
        """Bytes of the tensors in the order of their sorted names.

        `seed` feeds stochastic rounding, if any. None: numbers are rounded to the nearest instead, and what was decoded
        of such bytes is encoded as the same bytes again.
        """

    @abstractmethod
    def decode(self, data: memoryview, spec: Spec) -> Tensors:
        """The tensors, as owned writable memory; `data` has exactly `size(spec)` bytes, or `least` to `size`."""
