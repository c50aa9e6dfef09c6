"""Opens a table, whatever its form: a file by the end of its name, or a folder of parts."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from fedrec.core.errors import DataError
from fedrec.data import bulk
from fedrec.data.collect import Collector, Malformed
from fedrec.data.delimited import DelimitedFile
from fedrec.data.form import JSON_LINES, SEPARATORS, SUFFIXES, TextForm, is_packed, suffix_of, unknown_form
from fedrec.data.json_lines import JsonLinesFile
from fedrec.data.parquet import ParquetFile
from fedrec.data.parts import PartedTable
from fedrec.data.reading import check_encoding, reading
from fedrec.data.rows import TableFile
from fedrec.datasets.base import RawData


def require_table(path: Path, setting: str) -> Path:
    """`path` if it is an absolute path of a file or folder, else a DataError that names the `setting`."""
    if not path.is_absolute():
        raise DataError(f"{setting}={path} is a relative path, write {setting}={path.absolute()}")
    with reading(path, "file"):
        if path.is_file() or path.is_dir():
            return path
        if path.exists():
            raise DataError(
                f"{setting}={path} is a pipe or a device; expected a file, for it is read more than once: write its "
                "content to a file"
            )
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    close = get_close_matches(path.name, beside, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"{path.parent} has {len(beside)} files, none like it"
    raise DataError(f"{setting}={path}: there is no such file; {hint}")


def open_table(path: Path, form: TextForm) -> TableFile:
    """The reader that fits a file's name, or a folder of files. Raises DataError."""
    if problems := form.problems():
        raise DataError("; ".join(problems))
    return PartedTable(path, form, _open_file) if path.is_dir() else _open_file(path, form)


def interactions_in(
    table: TableFile, names: Sequence[str], malformed: Malformed, *, timed: bool, rated: bool
) -> RawData:
    """The interactions of a table, as `collect` gives them, many at once where their text is plain.

    Args:
        table: The table.
        names: Its columns of users, items, times and ratings; of what it has none, any column.
        malformed: What happens to a line that cannot be read.
        timed: Whether it has times.
        rated: Whether it has ratings.
    """
    collector = Collector(lambda: table.place, malformed, timed=timed, rated=rated)
    for piece in table.pieces(names, malformed, single=len(names)):
        arrays = piece.columns()
        if arrays is None or not bulk.add(collector, arrays):
            collector.add(piece.rows())
    return collector.raw()


def _open_file(path: Path, form: TextForm) -> TableFile:
    suffix = suffix_of(path)
    if suffix not in SUFFIXES:
        raise DataError(f"{path}: {unknown_form()}")
    if suffix in SEPARATORS:
        check_encoding(path, form)
        return DelimitedFile(path, form)
    if form.columns is not None:
        raise DataError(
            f"{path} names its columns itself, and {form.prefix}columns is for text without a header line: give "
            f"{form.setting('columns', '')}"
        )
    if suffix in JSON_LINES:
        check_encoding(path, form)
        return JsonLinesFile(path, form)
    if is_packed(path):
        raise DataError(f"{path}: a Parquet file is compressed inside, and is not read from an archive: unpack it")
    return ParquetFile(path, form)
