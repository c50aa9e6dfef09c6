"""What devices hold: some of its tables in the run's codec, everything else exactly.

Not a member of the family: it follows from the codec that the run has. Codes, hash functions and degrees are few bytes,
and an error in them would be another model; frozen copies of what is trained have to equal it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from typing_extensions import override

from fedrec.codecs.base import Codec
from fedrec.core.registry import MemberConfig
from fedrec.core.tensors import Spec, Tensors


@dataclass(frozen=True)
class BaseTableConfig(MemberConfig):
    """What both sides have to agree on: the configurations of the two codecs."""

    base: MemberConfig
    others: MemberConfig


class BaseTableCodec(Codec):
    """The tensors of some names by one codec, then all others by another."""

    def __init__(self, tables: Sequence[str], codec: Codec, others: Codec) -> None:
        name = f"{codec.config.name} {' '.join(tables)}, {others.config.name}"
        super().__init__(BaseTableConfig(name, codec.config, others.config))
        self._tables, self._codec, self._others = tuple(tables), codec, others

    @override
    def size(self, spec: Spec) -> int:
        base, others = self._parted(spec)
        return self._codec.size(base) + self._others.size(others)

    @override
    def encode(self, tensors: Tensors, spec: Spec, seed: int | None) -> bytes:
        base, others = self._parted(spec)
        return self._codec.encode(tensors, base, seed) + self._others.encode(tensors, others, seed)

    @override
    def decode(self, data: memoryview, spec: Spec) -> Tensors:
        base, others = self._parted(spec)
        end = self._codec.size(base)
        return self._codec.decode(data[:end], base) | self._others.decode(data[end:], others)

    def _parted(self, spec: Spec) -> tuple[Spec, Spec]:
        tables = {name: entry for name, entry in spec.items() if name in self._tables}
        return tables, {name: entry for name, entry in spec.items() if name not in self._tables}
