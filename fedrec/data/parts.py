"""A folder of parts, as Spark, Hive, Dask and others write a table: every file in it is a piece of one table."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from urllib.parse import unquote

from typing_extensions import override

from fedrec.core.errors import DataError
from fedrec.data.collect import Malformed, Row
from fedrec.data.form import JSON_LINES, PARQUET, SEPARATORS, SUFFIXES, TextForm, suffix_of
from fedrec.data.json_lines import JsonLinesFile
from fedrec.data.parquet import ParquetFile, clock_unit
from fedrec.data.reading import reading
from fedrec.data.rows import Piece, TableFile

_NULL = "__HIVE_DEFAULT_PARTITION__"
_LOGS = {"_delta_log": "Delta Lake", ".hoodie": "Hudi", "metadata": "Iceberg"}
"""Folders in which a table format notes which of its parts still count."""


def files_of(path: Path) -> list[Path]:
    """The files of a table: `path` itself, or its parts if it is a folder. Raises DataError as `part_files` does."""
    return part_files(path) if path.is_dir() else [path]


def part_files(folder: Path) -> list[Path]:
    """The parts in `folder` and the folders below, in the order of their names, numbers in them by size.

    What begins with `_` or `.` is no part (`_SUCCESS`, `_metadata`, `.part-0.crc`), nor is an empty text file.

    Raises:
        DataError: There is none; some file has no form that is read, or another one than the rest; it is a table whose
            parts do not all count.
    """
    with reading(folder, "folder"):
        for log, name in _LOGS.items():
            if (folder / log).is_dir() and (log != "metadata" or any((folder / log).glob("*.metadata.json"))):
                raise DataError(
                    f"{folder} is a {name} table: its folder also holds rows that were deleted or changed since, so "
                    "that its parts alone do not tell its content. Export it as plain Parquet or CSV"
                )
        found = [path for path in folder.rglob("*") if not _hidden(path.relative_to(folder)) and path.is_file()]
        found = [path for path in found if path.stat().st_size or suffix_of(path) in PARQUET]
    if not found:
        raise DataError(f"{folder} is a folder without a part of a table; expected files that end in {_ends()}")
    if strange := [path.name for path in found if suffix_of(path) not in SUFFIXES]:
        raise DataError(
            f"{folder} holds {len(strange)} files that cannot be a part of a table by their names, such as "
            f"{min(strange)}; expected only files that end in {_ends()}: remove the others, or begin their names with _"
        )
    if len(forms := sorted({_form(path) for path in found})) > 1:
        raise DataError(
            f"{folder} holds files of several forms ({', '.join(forms)}), which are no parts of one table: give one "
            "of the files, or a folder with files of one form"
        )
    return sorted(found, key=lambda path: [_by_size(part) for part in path.relative_to(folder).parts])


class PartedTable(TableFile):
    """A table in parts; what Hive's way of naming folders says (`day=2024-01-01/`) is a column of the rows below."""

    def __init__(self, folder: Path, form: TextForm, opened: Callable[[Path, TextForm], TableFile]) -> None:
        super().__init__(folder, form)
        self.parts = [(opened(path, form), _said(path.relative_to(folder))) for path in part_files(folder)]
        self._current = self.parts[0][0]

    @property
    @override
    def place(self) -> str:
        """The part that is being read, and the word that counts its rows."""
        return self._current.place

    @cached_property
    @override
    def columns(self) -> list[str]:
        """Names of the columns, which all parts share; of JSON lines those of any part. Raises DataError."""
        first, *others = ((part, dict.fromkeys([*part.columns, *said])) for part, said in self.parts)
        names = first[1]
        for part, its in others:
            if isinstance(part, JsonLinesFile):
                names |= its
            elif its.keys() != names.keys():
                raise DataError(
                    f"{part.path} and {first[0].path} have columns of other names, and parts of a table have the same: "
                    "give one of the files, or name the columns alike"
                )
        return list(names)

    @override
    def find(self, name: str) -> str | None:
        """The column that `name` names in the parts, or in the names of their folders."""
        part, said = self.parts[0]
        return name if name in said else part.find(name)

    @override
    def absent(self, names: Sequence[str]) -> list[str]:
        """Those of `names` that name no column: in any part, or, of JSON lines, in all of them."""
        lists = [part.absent([name for name in names if name not in said]) for part, said in self.parts]
        counted = [name for name in dict.fromkeys(names) if any(name in those for those in lists)]
        if isinstance(self._current, JsonLinesFile):
            return [name for name in counted if all(name in those for those in lists)]
        return counted

    @override
    def starts_with_data(self, names: Sequence[str]) -> bool:
        """As in `TableFile`, of any part."""
        return any(part.starts_with_data([n for n in names if n not in said]) for part, said in self.parts)

    @override
    def hints(self, names: Sequence[str]) -> list[str]:
        """As in `TableFile`."""
        return next(
            (
                part.hints(lacking)
                for part, said in self.parts
                if (lacking := part.absent([n for n in names if n not in said]))
            ),
            [],
        )

    @override
    def require(self, wanted: Mapping[str, str]) -> None:
        """As in `TableFile`; what looks like data is told of the part in which it is."""
        for part, said in self.parts:
            inside = {setting: name for setting, name in wanted.items() if name not in said}
            if part.starts_with_data(list(inside.values())):
                part.require(inside)
        super().require(wanted)

    @override
    def rows(self, names: Sequence[str], malformed: Malformed, single: int = 1) -> Iterator[Row]:
        """(line, values of the columns `names`) of one part after the other."""
        self._check_clocks(names)
        for part, said in self.parts:
            self._current = part
            yield from self._rows_of(part, said, names, malformed, single)

    @override
    def pieces(self, names: Sequence[str], malformed: Malformed, single: int = 1) -> Iterator[Piece]:
        """Those of one part after the other; rows of which a folder's name says something come one by one."""
        self._check_clocks(names)
        for part, said in self.parts:
            self._current = part
            if said.keys() & set(names):
                yield Piece(partial(self._rows_of, part, said, names, malformed, single))
            else:
                yield from part.pieces(names, malformed, single)

    def _rows_of(
        self, part: TableFile, said: Mapping[str, str | None], names: Sequence[str], malformed: Malformed, single: int
    ) -> Iterator[Row]:
        inside = [name for name in dict.fromkeys(names) if name not in said]
        if len(inside) == len(set(names)):
            yield from part.rows(names, malformed, single)
            return
        # A part's own columns come first: their values are where a line is malformed.
        asked = inside or part.columns[:1]
        leading = sum(name in inside for name in dict.fromkeys(names[:single]))
        for line, values in part.rows(asked, malformed, leading):
            row = {**dict(zip(asked, values, strict=True)), **said}
            yield line, [row[name] for name in names]

    def _check_clocks(self, names: Sequence[str]) -> None:
        """Times are compared as numbers of one unit. Raises DataError if parts keep a column in several."""
        for name in dict.fromkeys(names):
            units = {
                clock_unit(part.kinds[name]): part.path
                for part, said in self.parts
                if isinstance(part, ParquetFile) and name not in said and name in part.kinds
            }
            if len(units) > 1:
                told = "; ".join(f"{unit or 'no unit'} in {path}" for unit, path in units.items())
                raise DataError(
                    f"{self.path}: the parts keep the times of column {name!r} in several units ({told}): write them "
                    "again in one"
                )


def _hidden(path: Path) -> bool:
    return any(part.startswith(("_", ".")) for part in path.parts)


def _form(path: Path) -> str:
    """The family of forms that the name tells, for messages."""
    suffix = suffix_of(path)
    if suffix in SEPARATORS:
        return suffix
    return "JSON lines" if suffix in JSON_LINES else "Parquet"


def _by_size(name: str) -> list[object]:
    """A key that sorts part-2 before part-10."""
    return [int(piece) if piece.isdecimal() else piece for piece in re.split(r"([0-9]+)", name)]


def _said(path: Path) -> Mapping[str, str | None]:
    """What the folders above a part say of its rows: `day=1/kind=x/part-0` is day 1 and kind x."""
    pairs = (name.partition("=") for name in path.parts[:-1] if "=" in name)
    return {unquote(key): None if value == _NULL else unquote(value) for key, _, value in pairs}


def _ends() -> str:
    return ", ".join(SUFFIXES)
