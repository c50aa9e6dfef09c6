"""Tables whose changed rows take few values: the values ("actions") once, and for each row which of them it takes.

Not a member of the family: it follows from `uplink=actions`, whose stage sees to it that a user's rows are so. What is
decoded is what was encoded, as the run's codec holds the actions.

Source: FedRAS (arXiv 2507.08842, KDD 2025) in our reading, for no more than its abstract is public.

Layout, tensor by tensor in the order of their names: a tensor that is no table, as the codec has it; of a table the
number of rows that follow (u32), the number of actions (u8) and whether they are multiples of one row (u8), then

- the actions as a table [actions, width] in the codec or, of several that are multiples of one row, this row, divided
  by its largest number, in the codec, and the factors (float32), which loses nothing of what was rounded so;
- which row takes which action, in the shortest of three ways, which follows from the numbers before: the rows by their
  numbers, ascending, and an action each; a bit for every row of the table, and an action for each that is set; for
  every row of the table an action or none. Numbers have as few bits as will do (`fedrec.codecs.bits`).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from fedrec.codecs.base import Codec
from fedrec.codecs.bits import pack_bits, packed_size, unpack_bits, width
from fedrec.core.errors import FederationError, PacketError
from fedrec.core.registry import MemberConfig
from fedrec.core.tensors import Spec, TableSpec, Tensors, TensorSpec

MOST_ACTIONS = 256
"""With that of not moving, which is not sent."""

_HEAD = struct.Struct("<IBB")
_ALIKE = 1e-5
"""How far a row may be from a multiple of another, as a part of the longest: the last bits of a product."""

_Way = Literal["list", "bits", "catalogue"]


@dataclass(frozen=True)
class ActionCodecConfig(MemberConfig):
    """What both sides have to agree on.

    Attributes:
        values: The configuration of the codec of the actions.
        actions: The most that a table may have, with that of not moving.
    """

    values: MemberConfig
    actions: int


class Directions(NamedTuple):
    """Each user's rows as multiples of one.

    Attributes:
        row: [U, width], divided by its largest number.
        factors: [m], of all users' rows.
        exact: bool [U], whether the rows are these multiples.
    """

    row: Tensor
    factors: Tensor
    exact: Tensor


def directions(rows: Tensor, owner: Tensor, users: int) -> Directions:
    """The row of which each user's rows are multiples, taken from its longest.

    Args:
        rows: [m, width].
        owner: int64 [m], the user of each.
        users: U, how many there are; one without rows has zeros for its row.
    """
    squares = torch.linalg.vector_norm(rows, dim=1).square()  # twice as fast as a product of short rows
    largest = squares.new_zeros(users).scatter_reduce(0, owner, squares, "amax")
    number = torch.arange(len(rows), device=rows.device)
    number = torch.where(squares == largest.index_select(0, owner), number, len(rows))
    first = torch.full_like(largest, len(rows), dtype=torch.int64).scatter_reduce(0, owner, number, "amin")
    has = first < len(rows)
    row = rows.new_zeros(users, rows.shape[1])
    row[has] = rows.index_select(0, first[has])
    peak = row.abs().argmax(1, keepdim=True)
    height = row.gather(1, peak)
    row = row / torch.where(height == 0, torch.ones_like(height), height)
    factors = rows.gather(1, peak.index_select(0, owner))[:, 0]
    rest = torch.addcmul(rows, factors[:, None], row.index_select(0, owner), value=-1)
    off = torch.zeros_like(largest)
    off = off.scatter_reduce(0, owner, torch.linalg.vector_norm(rest, dim=1).square(), "amax")
    return Directions(row, factors, off <= _ALIKE**2 * largest)


class ActionCodec(Codec):
    """Tables by actions, and all other tensors by a codec of the family."""

    config: ActionCodecConfig

    def __init__(self, codec: Codec, actions: int) -> None:
        super().__init__(ActionCodecConfig(f"actions of {codec.config.name}", codec.config, actions))
        self._codec = codec
        self._known: dict[tuple[TableSpec, int, bool], int] = {}

    # Sizes -----------------------------------------------------------------------------------------------------------

    @override
    def size(self, spec: Spec) -> int:
        return sum(
            self.most_of_table(entry, entry.rows) if isinstance(entry, TableSpec) else self._codec.size({name: entry})
            for name, entry in spec.items()
        )

    @override
    def least(self, spec: Spec) -> int:
        return sum(
            _HEAD.size if isinstance(entry, TableSpec) else self._codec.size({name: entry})
            for name, entry in spec.items()
        )

    def table_size(self, entry: TableSpec, rows: int, actions: int, *, alike: bool) -> int:
        """Bytes of a table of which so many rows move by so many actions, which are multiples of one row or not."""
        if not rows:
            return _HEAD.size
        return _HEAD.size + self._actions_size(entry, actions, alike) + min(_places_sizes(entry.rows, rows, actions))

    def most_of_table(self, entry: TableSpec, rows: int, most: int | None = None) -> int:
        """The most bytes of a table of which at most so many rows move, whatever their actions.

        `most`: how many of these there are at most, with that of not moving; None: as many as there may be.
        """
        actions = min((self.config.actions if most is None else most) - 1, rows)
        return max(self.table_size(entry, rows, actions, alike=alike) for alike in (False, True))

    def _actions_size(self, entry: TableSpec, actions: int, alike: bool) -> int:
        """Bytes of the actions, which are multiples of one row or not."""
        key = entry, actions, alike
        if key not in self._known:  # asked for every user of a cohort
            if alike and actions > 1:
                self._known[key] = self._codec.size({"": _row_spec(entry)}) + 4 * actions
            else:
                self._known[key] = self._codec.size({"": _actions_spec(entry, actions)})
        return self._known[key]

    # There and back --------------------------------------------------------------------------------------------------

    @override
    def encode(self, tensors: Tensors, spec: Spec, seed: int | None) -> bytes:
        """As in `Codec`; the actions are rounded to the nearest, for the stage has rounded them.

        Raises FederationError if the rows of a table take more values than there may be actions.
        """
        parts = []
        for name in sorted(spec):
            entry, tensor = spec[name], tensors[name].detach().cpu()
            if isinstance(entry, TableSpec):
                parts.append(self._encoded(entry, tensor))
            else:
                parts.append(self._codec.encode({name: tensor}, {name: entry}, seed))
        return b"".join(parts)

    def _encoded(self, entry: TableSpec, table: Tensor) -> bytes:
        rows = torch.nonzero((table != 0).any(1)).flatten() if entry.size else torch.arange(0)
        if not len(rows):
            return _HEAD.pack(0, 0, False)
        actions, taken = torch.unique(table[rows], dim=0, return_inverse=True)
        count = len(actions)
        if count >= self.config.actions:
            raise FederationError(
                f"{len(rows)} rows of a table take {count} values, at most {self.config.actions - 1} can be sent as "
                "actions: they have not been through the stage of uplink=actions"
            )
        found = directions(actions, torch.zeros(count, dtype=torch.int64), 1)
        alike = count > 1 and bool(found.exact[0])
        head = _HEAD.pack(len(rows), count, alike)
        if alike:
            sent = self._codec.encode({"": found.row[0]}, {"": _row_spec(entry)}, None)
            sent += found.factors.float().numpy().astype("<f4").tobytes()
        else:
            sent = self._codec.encode({"": actions}, {"": _actions_spec(entry, count)}, None)
        return head + sent + _places(entry.rows, rows.numpy(), taken.numpy(), count)

    @override
    def decode(self, data: memoryview, spec: Spec) -> Tensors:
        """As in `Codec`. Raises PacketError (`malformed`) if these are no bytes that `encode` makes."""
        tensors: Tensors = {}
        reader = _Reader(data)
        for name in sorted(spec):
            entry = spec[name]
            if isinstance(entry, TableSpec):
                tensors[name] = self._decoded(entry, reader)
            else:
                tensors |= self._codec.decode(reader.take(self._codec.size({name: entry})), {name: entry})
        reader.end()
        return tensors

    def _decoded(self, entry: TableSpec, reader: _Reader) -> Tensor:
        rows, count, alike = _HEAD.unpack(reader.take(_HEAD.size))
        if rows > entry.rows or not min(rows, 1) <= count <= min(rows, self.config.actions - 1) or alike > (count > 1):
            raise PacketError(
                "malformed", f"{rows} of {entry.rows} rows are said to move by {count} actions of {self.config.actions}"
            )
        table = entry.zeros()
        if not rows:
            return table
        if alike:
            row = self._codec.decode(reader.take(self._codec.size({"": _row_spec(entry)})), {"": _row_spec(entry)})[""]
            factors = torch.frombuffer(bytearray(reader.take(4 * count)), dtype=torch.float32)
            actions = factors[:, None] * row
        else:
            form = {"": _actions_spec(entry, count)}
            actions = self._codec.decode(reader.take(self._codec.size(form)), form)[""]
        numbers, taken = _placed(entry.rows, rows, count, reader)
        table[torch.from_numpy(numbers)] = actions[torch.from_numpy(taken)].to(table.dtype)
        return table


class _Reader:
    """Bytes one after the other."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._at = data, 0

    def take(self, size: int) -> memoryview:
        """The next `size`. Raises PacketError (`malformed`) if there are not as many."""
        if self._at + size > len(self._data):
            raise PacketError("malformed", f"actions end after {len(self._data)} bytes, in the midst of a tensor")
        self._at += size
        return self._data[self._at - size : self._at]

    def end(self) -> None:
        """Raises PacketError (`malformed`) if something is left."""
        if self._at != len(self._data):
            raise PacketError("malformed", f"{len(self._data)} bytes came, the actions in them end after {self._at}")


def _actions_spec(entry: TableSpec, actions: int) -> TensorSpec:
    return TableSpec((actions, *entry.shape[1:]), entry.dtype)


def _row_spec(entry: TableSpec) -> TensorSpec:
    return TensorSpec(entry.shape[1:], entry.dtype)


# Which row takes which action ----------------------------------------------------------------------------------------


def _places_sizes(rows: int, moved: int, actions: int) -> tuple[int, int, int]:
    """Bytes of the three ways: numbers, bits, the whole catalogue."""
    taken = packed_size(moved, width(actions))
    return packed_size(moved, width(rows)) + taken, packed_size(rows, 1) + taken, packed_size(rows, width(actions + 1))


def _way(rows: int, moved: int, actions: int) -> _Way:
    sizes = _places_sizes(rows, moved, actions)
    ways: tuple[_Way, ...] = ("list", "bits", "catalogue")
    return ways[sizes.index(min(sizes))]


def _places(rows: int, numbers: NDArray[np.int64], taken: NDArray[np.int64], actions: int) -> bytes:
    way = _way(rows, len(numbers), actions)
    if way == "catalogue":
        of_each = np.zeros(rows, dtype=np.int64)
        of_each[numbers] = taken + 1
        return pack_bits(of_each, width(actions + 1))
    if way == "list":
        return pack_bits(numbers, width(rows)) + pack_bits(taken, width(actions))
    moved = np.zeros(rows, dtype=np.int64)
    moved[numbers] = 1
    return pack_bits(moved, 1) + pack_bits(taken, width(actions))


def _placed(rows: int, moved: int, actions: int, reader: _Reader) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The inverse: which rows, and their actions. Raises PacketError (`malformed`) if these are no such rows."""

    def read(count: int, bits: int) -> NDArray[np.int64]:
        return unpack_bits(reader.take(packed_size(count, bits)), count, bits)

    way = _way(rows, moved, actions)
    if way == "catalogue":
        of_each = read(rows, width(actions + 1))
        numbers = np.flatnonzero(of_each).astype(np.int64)
        taken = of_each[numbers] - 1
    else:
        numbers = read(moved, width(rows)) if way == "list" else np.flatnonzero(read(rows, 1)).astype(np.int64)
        taken = read(moved, width(actions))
    lies = len(numbers) != moved or (numbers[1:] <= numbers[:-1]).any() or numbers[-1] >= rows
    if lies or (taken >= actions).any():
        raise PacketError(
            "malformed", f"what says of {moved} rows which action each takes names other rows or other actions"
        )
    return numbers, taken
