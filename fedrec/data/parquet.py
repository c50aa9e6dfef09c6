"""Parquet files, read in batches of rows. The only form that needs another package than the standard library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from typing_extensions import override

from fedrec.core.errors import DataError
from fedrec.data.bulk import Arrays
from fedrec.data.collect import Malformed, Row
from fedrec.data.form import TextForm
from fedrec.data.reading import DAMAGED, reading
from fedrec.data.rows import Piece, TableFile, require_distinct


class ParquetFile(TableFile):
    """A Parquet file; it is open only while its rows are read."""

    unit = "row"

    def __init__(self, path: Path, form: TextForm | None = None) -> None:
        super().__init__(path, form or TextForm())
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise DataError(f"reading {path} needs pyarrow: pip install pyarrow") from error
        self._damage = (*DAMAGED, pyarrow.ArrowException)

    @cached_property
    def kinds(self) -> dict[str, Any]:
        """The Arrow type of every column, by name. Raises DataError, also if two columns have one name."""
        import pyarrow.parquet

        with reading(self.path, "Parquet file", damage=self._damage):
            schema = pyarrow.parquet.read_schema(self.path)
            names, types = list(schema.names), list(schema.types)
        require_distinct(str(self.path), names)
        return dict(zip(names, types, strict=True))

    @property
    @override
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self.kinds)

    @override
    def rows(self, names: Sequence[str], malformed: Malformed, single: int = 1) -> Iterator[Row]:
        """(row, values of the columns `names`) for every row."""
        distinct = list(dict.fromkeys(names))
        for row, batch in self._batches(distinct, 2**16):
            yield from self._read(batch, row, names)

    @override
    def pieces(self, names: Sequence[str], malformed: Malformed, single: int = 1) -> Iterator[Piece]:
        """Batches of rows; they are read at once if all columns are of plain types."""
        distinct = list(dict.fromkeys(names))
        if not all(_is_plain(self.kinds[name]) for name in distinct):
            yield from super().pieces(names, malformed, single)
            return
        for row, batch in self._batches(distinct, 2**20):
            yield Piece(partial(self._read, batch, row, names), partial(self._columns, batch, names))

    def _read(self, batch: Any, row: int, names: Sequence[str]) -> Iterator[Row]:
        """The rows of a batch that begins after `row`."""
        with reading(f"{self.path}, after row {row},", "Parquet file", damage=self._damage):
            values = {name: _plain(batch.column(name)) for name in dict.fromkeys(names)}
        return enumerate(zip(*(values[name] for name in names), strict=True), row + 1)

    def _columns(self, batch: Any, names: Sequence[str]) -> Arrays | None:
        """Its columns, whole; None if one has text that is none, of which `_read` says where."""
        import pyarrow

        try:
            for name in names:
                batch.column(name).validate(full=True)
        except pyarrow.ArrowInvalid:
            return None
        return [_whole(batch.column(name)) for name in names]

    def _batches(self, names: Sequence[str], size: int) -> Iterator[tuple[int, Any]]:
        """How many rows were before, and the next of them."""
        import pyarrow.parquet

        row = 0
        with reading(self.path, "Parquet file", damage=self._damage):
            file = pyarrow.parquet.ParquetFile(self.path, page_checksum_verification=True)
            batches = file.iter_batches(size, columns=names)
        with file:
            while True:
                with reading(f"{self.path}, after row {row},", "Parquet file", damage=self._damage):
                    batch = next(batches, None)
                    if batch is None:
                        return
                yield row, batch
                row += len(batch)


def clock_unit(kind: Any) -> str | None:
    """The unit of a type of times ("ms"), None for any other type."""
    import pyarrow

    return str(kind.unit) if pyarrow.types.is_timestamp(kind) else None


def _is_plain(kind: Any) -> bool:
    """Whether a column of that type is read at once: text, numbers and clocks."""
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    plain = types.is_string, types.is_large_string, types.is_integer, types.is_floating, types.is_timestamp
    return any(is_so(kind) for is_so in plain)


def _whole(column: Any) -> Any:
    """Such a column as `_plain` has its values, still in Arrow."""
    from pyarrow import int64, types

    if types.is_dictionary(column.type):  # which may have values that do not occur, and in another order
        column = column.dictionary_decode()
    return column.cast(int64()) if types.is_timestamp(column.type) else column


def _plain(column: Any) -> list[Any]:
    from pyarrow import float64, int64, types

    kind = column.type
    if types.is_dictionary(kind):
        column, kind = column.dictionary_decode(), kind.value_type
    if types.is_timestamp(kind):
        # Clocks stay whole numbers of their own unit: nothing is rounded, and their order is all that counts.
        column = column.cast(int64())
    elif types.is_decimal(kind):
        if kind.scale == 0:  # the whole numbers of a database: exact, however long
            return [None if value is None else int(value) for value in column.to_pylist()]
        column = column.cast(float64())
    elif types.is_binary(kind) or types.is_large_binary(kind):
        return [_text(value) for value in column.to_pylist()]  # how Impala and older writers keep text
    return list(column.to_pylist())


def _text(value: bytes | None) -> object:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return value
