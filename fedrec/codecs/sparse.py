"""The rows of tables that an update changes, by their numbers, where that is shorter than the whole table.

Not a member of the family: it follows from the codec that the run has, in which the values are. Nothing is lost: what
is decoded is what the run's codec would have brought of the whole table, to the bit (a zero without its sign), for a
row that is not listed is zero. So it tells what the zeros of a whole table tell, and no more.

Layout, tensor by tensor in the order of their names: a tensor that is no table, as the codec has it; of a table, the
number of rows that follow (u32), which of its rows these are, and their values. All rows: the table as the codec has
it. Which rows is told by a bit for each row of the table, or by their numbers, ascending, each in as many bytes
(little-endian) as the last row's needs: by what is shorter for that many, so that nothing says which. No rows: nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import override

from fedrec.codecs.base import Codec
from fedrec.core.errors import PacketError
from fedrec.core.registry import MemberConfig
from fedrec.core.tensors import Spec, TableSpec, Tensors

_COUNT = struct.Struct("<I")


@dataclass(frozen=True)
class SparseConfig(MemberConfig):
    """What both sides have to agree on: the configuration of the codec of the values."""

    values: MemberConfig


class SparseCodec(Codec):
    """The changed rows of tables, and all other tensors, by a codec of the family."""

    def __init__(self, codec: Codec) -> None:
        super().__init__(SparseConfig(f"sparse {codec.config.name}", codec.config))
        self._codec = codec

    @override
    def size(self, spec: Spec) -> int:
        tables = sum(isinstance(entry, TableSpec) for entry in spec.values())
        return _COUNT.size * tables + self._codec.size(spec)

    @override
    def least(self, spec: Spec) -> int:
        return self.size_of_rows(spec, dict.fromkeys(spec, 0))

    def size_of_rows(self, spec: Spec, changed: Mapping[str, int]) -> int:
        """Bytes of tensors in whose tables so many rows are other than zero."""
        return sum(
            _COUNT.size + self._table_size(entry, changed[name])
            if isinstance(entry, TableSpec)
            else self._codec.size({name: entry})
            for name, entry in spec.items()
        )

    def _table_size(self, entry: TableSpec, changed: int) -> int:
        whole = self._codec.size({"": entry})
        return self._list_size(entry, changed) if self._listed(entry, changed) else whole

    def _listed(self, entry: TableSpec, changed: int) -> bool:
        """Whether so many rows are listed."""
        return changed < entry.rows and self._list_size(entry, changed) < self._codec.size({"": entry})

    def _list_size(self, entry: TableSpec, changed: int) -> int:
        """Bytes of a list of so many rows, after their number."""
        return _places_size(changed, entry.rows) + self._codec.size({"": _rows_of(entry, changed)}) if changed else 0

    @override
    def encode(self, tensors: Tensors, spec: Spec, seed: int | None) -> bytes:
        if seed is not None:  # a draw belongs to a number's place in the whole tensor: rounded as if that were sent
            tensors = self._codec.decode(memoryview(self._codec.encode(tensors, spec, seed)), spec)
        parts = []
        for name in sorted(spec):
            entry, tensor = spec[name], tensors[name].detach().cpu()
            if not isinstance(entry, TableSpec):
                parts.append(self._codec.encode({name: tensor}, {name: entry}, None))
                continue
            rows = torch.nonzero((tensor.flatten(1) != 0).any(1)).flatten() if entry.size else torch.arange(0)
            if not self._listed(entry, len(rows)):
                parts += [_COUNT.pack(entry.rows), self._codec.encode({name: tensor}, {name: entry}, None)]
                continue
            parts.append(_COUNT.pack(len(rows)))
            if len(rows):
                listed = {name: _rows_of(entry, len(rows))}
                parts += [_places(rows.numpy(), entry.rows), self._codec.encode({name: tensor[rows]}, listed, None)]
        return b"".join(parts)

    @override
    def decode(self, data: memoryview, spec: Spec) -> Tensors:
        """As in `Codec`. Raises PacketError (`malformed`) if these are no bytes that `encode` makes."""
        tensors: Tensors = {}
        at = 0

        def take(size: int) -> memoryview:
            nonlocal at
            if at + size > len(data):
                raise PacketError("malformed", f"a list of rows ends after {len(data)} bytes, in the midst of a tensor")
            at += size
            return data[at - size : at]

        for name in sorted(spec):
            entry = spec[name]
            count: int | None = _COUNT.unpack(take(_COUNT.size))[0] if isinstance(entry, TableSpec) else None
            if not isinstance(entry, TableSpec) or count is None or count == entry.rows:
                tensors |= self._codec.decode(take(self._codec.size({name: entry})), {name: entry})
                continue
            if count > entry.rows or not self._listed(entry, count):
                raise PacketError("malformed", f"{count} rows of {entry.rows} are listed, which is not how they travel")
            tensors[name] = entry.zeros()
            if count:
                rows = _numbers(take(_places_size(count, entry.rows)), count, entry.rows)
                listed = {name: _rows_of(entry, count)}
                values = self._codec.decode(take(self._codec.size(listed)), listed)[name]
                tensors[name][torch.from_numpy(rows)] = values
        if at != len(data):
            raise PacketError("malformed", f"{len(data)} bytes came, a list of rows in them ends after {at}")
        return tensors


def _rows_of(entry: TableSpec, count: int) -> TableSpec:
    """The table of so many rows."""
    return TableSpec((count, *entry.shape[1:]), entry.dtype)


def _width(rows: int) -> int:
    """Bytes of the number of a row, of so many rows."""
    return max(1, ((rows - 1).bit_length() + 7) // 8)


def _places_size(count: int, rows: int) -> int:
    """Bytes that say which `count` of `rows` rows these are."""
    return min(count * _width(rows), (rows + 7) // 8)


def _places(numbers: NDArray[np.int64], rows: int) -> bytes:
    """Those bytes, of ascending numbers."""
    if len(numbers) * _width(rows) <= (rows + 7) // 8:
        return numbers.astype("<u4")[:, None].view(np.uint8)[:, : _width(rows)].tobytes()
    bits = np.zeros(rows, dtype=np.bool_)
    bits[numbers] = True
    return np.packbits(bits).tobytes()


def _numbers(data: memoryview, count: int, rows: int) -> NDArray[np.int64]:
    """The inverse of `_places`. Raises PacketError (`malformed`) if these are not `count` ascending numbers of rows."""
    raw = np.frombuffer(data, dtype=np.uint8)
    if count * _width(rows) <= (rows + 7) // 8:
        wide = np.zeros((count, 4), dtype=np.uint8)
        wide[:, : _width(rows)] = raw.reshape(count, -1)
        numbers = wide.view("<u4")[:, 0].astype(np.int64)
    else:
        numbers = np.flatnonzero(np.unpackbits(raw)).astype(np.int64)
    if len(numbers) != count or (numbers[1:] <= numbers[:-1]).any() or numbers[-1] >= rows:
        raise PacketError(
            "malformed", f"a list of {count} rows does not name {count} of {rows}, each once and in order"
        )
    return numbers
