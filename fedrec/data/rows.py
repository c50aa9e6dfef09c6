"""Rows of a table in a file, one after the other: CSV, TSV, JSON lines (also gzipped) or Parquet.

All readers give (line, values of the asked columns); a line that cannot be read goes to `Malformed`. Parsing is
the standard library's, so that every line has its right number; only Parquet needs another package.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import IO, Any

from fedrec.core.errors import DataError
from fedrec.core.registry import nearest
from fedrec.data.collect import Malformed, Row

SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".json", ".parquet", ".pq")


@contextmanager
def open_text(path: Path, encoding: str) -> Iterator[IO[str]]:
    """Open a text file, gzipped or not; what is not text in `encoding`, or a damaged archive, is a DataError."""
    try:
        codecs.lookup(encoding)
    except LookupError as error:
        raise DataError(
            f"there is no encoding {encoding!r} to read {path} with; legal are utf-8, latin-1, ..."
        ) from error
    try:
        with (
            gzip.open(path, "rt", encoding=encoding, newline="")
            if path.suffix == ".gz"
            else path.open("r", encoding=encoding, newline="")
        ) as stream:
            yield stream
    except UnicodeError as error:
        what = str(error)
        if isinstance(error, UnicodeDecodeError):
            what = f"{error.reason}, byte {error.object[error.start]:#04x}"
        raise DataError(
            f"{path} is not {encoding} text ({what}): name its encoding "
            "where the data set has that setting (dataset.encoding=latin-1), or convert the file"
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is a damaged or truncated gzip file ({error}): fetch it again") from error


def require_file(path: Path, setting: str) -> Path:
    """`path` if it is an absolute path of a file, else a DataError that names the configuration's `setting`."""
    if not path.is_absolute():
        raise DataError(f"{setting}={path} is a relative path, write {setting}={path.absolute()}")
    if not path.is_file():
        beside = [p.name for p in path.parent.iterdir() if p.is_file()] if path.parent.is_dir() else []
        close = get_close_matches(path.name, beside, n=3, cutoff=0.5)
        hint = (
            f"did you mean {' or '.join(close)}?" if close else f"{path.parent} has {len(beside)} files, none like it"
        )
        raise DataError(f"{setting}={path}: there is no such file; {hint}")
    return path


class TableFile(ABC):
    """A file that holds a table. `place` names the file and the word that counts its lines, for messages."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.place = f"{path}, line"

    @property
    @abstractmethod
    def columns(self) -> list[str]:
        """Names of the columns."""

    @abstractmethod
    def rows(self, names: Sequence[str], malformed: Malformed) -> Iterator[Row]:
        """(line, values of the columns `names`) for every line that can be read."""

    def require(self, wanted: dict[str, str]) -> None:
        """Check that the columns exist; `wanted` maps the configuration's settings to names. Raises DataError."""
        columns = self.columns
        missing = [
            f"{self.path} has no column {name!r} ({setting}); found {', '.join(map(repr, columns))}; "
            f"{nearest(name, columns)} Set {setting} to the right name"
            for setting, name in wanted.items()
            if name not in columns
        ]
        if missing:
            raise DataError("; ".join(missing))


def open_table(path: Path, separator: str | None, encoding: str) -> TableFile:
    """The reader that fits the file's name; `separator` null: a comma for .csv, a tab for .tsv and .txt."""
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix in (".csv", ".tsv", ".txt"):
        return DelimitedFile(path, separator or ("," if suffix == ".csv" else "\t"), encoding)
    if suffix in (".jsonl", ".ndjson", ".json"):
        return JsonLinesFile(path, encoding)
    if suffix in (".parquet", ".pq"):
        return ParquetFile(path)
    raise DataError(f"{path}: cannot tell its form from its name; expected a name that ends in {', '.join(SUFFIXES)}")


def _without_mark(encoding: str) -> str:
    """The encoding that passes over a byte order mark: it is no part of the first column's name, nor of any line."""
    return "utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding


class DelimitedFile(TableFile):
    """CSV or TSV with a header line; blank lines are passed over."""

    def __init__(self, path: Path, separator: str, encoding: str) -> None:
        super().__init__(path)
        if len(separator) != 1 or separator in '"\r\n':
            raise DataError(f"{path}: the separator {separator!r} cannot stand between fields; give one character")
        self.separator = separator
        self.encoding = _without_mark(encoding)

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        with open_text(self.path, self.encoding) as stream:
            try:
                header = next(self._reader(stream), None)
            except csv.Error as error:
                raise DataError(f"{self.path}, line 1: cannot read the header ({error}); mend its quotes") from error
        if not header:
            raise DataError(f"{self.path} is empty: expected a header line with the names of the columns")
        if double := [place for place, name in enumerate(header, 1) if header.count(name) > 1]:
            # Named by their places: in a file without a header the first line is somebody's data.
            raise DataError(f"{self.path}, line 1: two columns have the same name, among columns {double}; rename one")
        return list(header)

    def rows(self, names: Sequence[str], malformed: Malformed) -> Iterator[Row]:
        """(line, values of the columns `names`) for every line that can be read."""
        columns = self.columns
        picks = [columns.index(name) for name in names]
        with open_text(self.path, self.encoding) as stream:
            reader = self._reader(stream)
            next(reader)
            while True:
                line = reader.line_num + 1
                try:
                    values = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    lost = reader.line_num - line + 1  # an open quote takes those after it along
                    malformed.met(f"{self.place} {line}", str(error), "a line with sound quotes", lost)
                    continue
                if len(values) == len(columns):
                    yield line, [values[pick] for pick in picks]
                elif values:
                    expected = f"{len(columns)} columns as in the header, {len(values)} came"
                    lost = reader.line_num - line + 1
                    malformed.met(f"{self.place} {line}", self.separator.join(values), expected, lost)

    def _reader(self, stream: IO[str]) -> Any:
        return csv.reader(stream, delimiter=self.separator, strict=True)


class JsonLinesFile(TableFile):
    """One JSON object a line; a key that an object lacks is None. The columns are the keys of the first object."""

    def __init__(self, path: Path, encoding: str) -> None:
        super().__init__(path)
        self.encoding = _without_mark(encoding)

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        for _, found in self.objects(Malformed("skip")):
            return list(found)
        raise DataError(f"{self.path} holds no JSON object: expected one a line")

    def rows(self, names: Sequence[str], malformed: Malformed) -> Iterator[Row]:
        """(line, values of the columns `names`) for every line that can be read."""
        for line, found in self.objects(malformed):
            yield line, [found.get(name) for name in names]

    def objects(self, malformed: Malformed) -> Iterator[tuple[int, dict[str, Any]]]:
        """(line, object) for every line that holds a JSON object."""
        with open_text(self.path, self.encoding) as stream:
            for line, text in enumerate(stream, 1):
                if not text.strip():
                    continue
                try:
                    found = json.loads(text)
                    if "\\ud" in text or "\\uD" in text:  # half a pair of surrogates is no text
                        json.dumps(found, ensure_ascii=False).encode()
                except (ValueError, RecursionError):
                    found = None
                if isinstance(found, dict):
                    yield line, found
                else:
                    malformed.met(f"{self.place} {line}", text.strip(), "one JSON object")


class ParquetFile(TableFile):
    """A Parquet file, read in batches of rows."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.place = f"{path}, row"
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise DataError(f"reading {path} needs pyarrow: pip install pyarrow") from error
        try:
            self._file = pyarrow.parquet.ParquetFile(path)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{path} is not a sound Parquet file: {error}") from error

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self._file.schema_arrow.names)

    def rows(self, names: Sequence[str], malformed: Malformed) -> Iterator[Row]:
        """(line, values of the columns `names`) for every line that can be read."""
        import pyarrow

        row = 0
        distinct = list(dict.fromkeys(names))
        try:
            for batch in self._file.iter_batches(columns=distinct):
                values = {name: _plain(batch.column(name)) for name in distinct}
                yield from enumerate(zip(*(values[name] for name in names), strict=True), row + 1)
                row += len(batch)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{self.path} is damaged after row {row}: {error}") from error


def _plain(column: Any) -> list[Any]:
    import pyarrow

    kind = column.type
    if pyarrow.types.is_dictionary(kind):
        column, kind = column.dictionary_decode(), kind.value_type
    if pyarrow.types.is_timestamp(kind):
        # Clocks stay whole numbers of their own unit: nothing is rounded, and their order is all that counts.
        column = column.cast(pyarrow.int64())
    elif pyarrow.types.is_decimal(kind):
        column = column.cast(pyarrow.float64())
    return list(column.to_pylist())
