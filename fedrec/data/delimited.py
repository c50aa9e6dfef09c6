"""Text with fields in lines: CSV, TSV, `::`, RecBole's atomic files; with or without a header line.

Parsing is the standard library's, so that every line has its right number.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import IO, Any

from typing_extensions import override

from fedrec.core.errors import DataError
from fedrec.data import bulk
from fedrec.data.collect import Malformed, Row
from fedrec.data.form import TextForm
from fedrec.data.reading import open_bytes, open_text, reading
from fedrec.data.rows import Piece, TableFile, require_distinct

MAX_FIELD = 2**26
"""Characters that one field may have: enough for any text, and a quote that was left open does not fill the memory."""

_TYPES = ("token", "token_seq", "float", "float_seq")
"""What RecBole writes behind the name of a column: `user_id:token`."""
_BLANK = ("\n", "\r\n", "\r")
_Trouble = Callable[[int, int, str], None]
"""Called with a line, how many lines are lost from there on, and why."""


@dataclass
class _Place:
    """Where the reading of a file stands: whether the header line is still to come, and what is behind."""

    before: bool
    lines: int = 0
    seen: bool = False


class DelimitedFile(TableFile):
    """A text file with one row a line, or more where a quoted field holds line ends; blank lines are passed over."""

    at_once_from = 2**20
    """Bytes from which on a file is read in blocks: a small one is read before pyarrow is loaded."""
    block = bulk.BLOCK

    def __init__(self, path: Path, form: TextForm) -> None:
        super().__init__(path, form)
        self.separator = form.separator_in(path)
        self.quote = form.quote_in(path)
        self.escape = form.escape or None
        if problems := replace(form, separator=self.separator).problems():
            raise DataError(f"{path}: {'; '.join(problems)}")

    @cached_property
    @override
    def columns(self) -> list[str]:
        """Names of the columns: those of the header line, or as the form names them."""
        if self.form.columns is not None:
            return list(self.form.columns)
        with open_text(self.path, self.form) as stream:
            header = next(self._records(stream, self._bad_header), None)
        if header is None:
            raise DataError(f"{self.path} is empty: expected a header line with the names of the columns")
        line, _, names = header
        require_distinct(f"{self.path}, line {line}", names)
        return names

    @override
    def find(self, name: str) -> str | None:
        """The column of that name; in a typed header also by the name without its type."""
        if name in self.columns:
            return name
        typed = [column for column in self.columns if column in {f"{name}:{kind}" for kind in _TYPES}]
        return typed[0] if len(typed) == 1 else None

    @override
    def rows(self, names: Sequence[str], malformed: Malformed, single: int = 1) -> Iterator[Row]:
        """(line, values of the columns `names`) for every line that can be read."""
        with open_text(self.path, self.form) as stream:
            yield from self._rows(stream, _Place(self.form.columns is None), names, malformed, single)

    def _rows(
        self, stream: IO[str], at: _Place, names: Sequence[str], malformed: Malformed, single: int
    ) -> Iterator[Row]:
        """The same of what begins at a place of the file."""
        columns = self.columns
        picks = self._picks(names)
        header = [columns[pick] for pick in picks]
        first, width = picks[0], len(columns)
        above = at.lines

        def lost(line: int, lines: int, why: str) -> None:
            malformed.met(f"{self.place} {above + line}", why, self._sound_quotes(), lines)

        for number, lines, values in self._records(stream, lost):
            line = above + number
            if at.before:
                at.before = False
                continue
            if len(values) != width:
                why = f"{width} columns as {'named' if self.form.columns else 'in the header'}, {len(values)} came"
                malformed.met(f"{self.place} {line}", self.separator.join(values), why, lines)
                continue
            picked = [values[pick] for pick in picks]
            if lines > 1 and any("\n" in value or "\r" in value for value in picked[:single]):
                lost(number, lines, picked[0])
                continue
            if picked[0] == columns[first] and self._is_header(picked, header, line, at.seen):
                malformed.met(f"{self.place} {line}", self.separator.join(values), self._data_line(), lines)
                continue
            at.seen = True
            yield line, picked

    def _picks(self, names: Sequence[str]) -> list[int]:
        return [self.columns.index(self.find(name) or name) for name in names]

    @override
    def pieces(self, names: Sequence[str], malformed: Malformed, single: int = 1) -> Iterator[Piece]:
        """Blocks of lines, each of which may be read at once; small files, and what no block can be, line by line."""
        form, quote = self.form, None if self.quote is None else self.quote.encode()
        with reading(self.path, "file"):
            small = self.path.stat().st_size < self.at_once_from
        if small or not bulk.parses(form.encoding, self.separator, self.quote, self.escape):
            yield from super().pieces(names, malformed, single)
            return
        at = _Place(form.columns is None)
        with open_bytes(self.path, form) as stream:
            blocks = bulk.blocks_of(stream, self.block)
            block = next(blocks, b"")
            while block:
                following = next(blocks, b"")
                head = self._header_in(block) if at.before else 0
                whole = block.endswith(b"\n") or not following
                if head is None or not whole or not bulk.quotes_are_plain(block, self.separator.encode()[:1], quote):
                    rest = bulk.as_text(chain([block, following], blocks), form.encoding)
                    yield Piece(partial(self._rows, rest, at, names, malformed, single))
                    return
                if head:
                    at.before, at.lines, block = False, bulk.lines_in(block[:head]), block[head:]
                if block:
                    text, columns = bulk.as_text([block], form.encoding), partial(self._parsed, block, at, names)
                    yield Piece(partial(self._rows, text, at, names, malformed, single), columns)
                at.lines += bulk.lines_in(block)
                block = following

    def _header_in(self, block: bytes) -> int | None:
        """Bytes of a first block up to the end of the header line; None if that is not plain."""
        first = next(self._records(bulk.as_text([block], self.form.encoding), self._bad_header), None)
        if first is None:  # blank lines alone
            return None
        line, lines, _ = first
        end = 0
        for _ in range(line + lines - 1):
            end = block.find(b"\n", end) + 1
            if not end:
                return None
        return end if bulk.lines_in(block[:end]) == line + lines - 1 else None

    def _parsed(self, block: bytes, at: _Place, names: Sequence[str]) -> bulk.Arrays | None:
        """The columns of a block, if all of it is plain."""
        picks = self._picks(names)
        if len(block) > MAX_FIELD:
            return None
        found = bulk.parsed(block, self.form.encoding, self.separator, self.quote, len(self.columns), picks)
        if found is None or bulk.has(found[0], self.columns[picks[0]]):  # the header line once more
            return None
        at.seen = at.seen or len(found[0]) > 0
        return found

    @override
    def starts_with_data(self, names: Sequence[str]) -> bool:
        """Whether an asked column is called by a number or a date; if none of them is found, whether any column is."""
        if self.form.columns is not None:
            return False
        absent = self.absent(names)
        return any(_is_value(name) for name in [name for name in names if name not in absent] or self.columns)

    @override
    def hints(self, names: Sequence[str]) -> list[str]:
        """Why `names` may not be found; nothing of the file's content is in it."""
        columns, form = self.columns, self.form
        if form.columns is not None:
            return [f"the names are those of {form.prefix}columns"]
        found = []
        if columns[0].startswith("sep="):
            found.append("its first line tells a spreadsheet the separator: remove that line")
        if any("\0" in column for column in columns):
            found.append(f"its text holds NUL characters: is it {form.setting('encoding', 'utf-16')}?")
        if columns[0].startswith(("\ufeff", "ï»¿")):
            found.append(f"it starts with a byte order mark: is it {form.setting('encoding', 'utf-8')}?")
        if any(len(column) > 1 and column[0] == column[-1] == '"' and column.strip('"') in names for column in columns):
            found.append(f"its names stand in quotes: set {form.setting('quote', chr(34))}")
        if len(columns) == 1 and (other := [mark for mark in ("::", "\t", ";", ",", "|", " ") if mark in columns[0]]):
            mark = other[0].replace("\t", "\\t")
            found.append(f"it has one column, and its first line holds {mark!r}: {form.setting('separator', mark)}?")
        found.append(f"if it has no header line, name its columns in their order, as in {form.naming()}")
        return found

    def _is_header(self, picked: list[str], header: list[str], line: int, seen: bool) -> bool:
        """Whether a row whose id is the name of its column is a header line once more. Raises DataError."""
        if picked == header:
            return True
        if not seen and self.form.columns is None:
            raise DataError(
                f"{self.place} {line}: has the same id as the first line, where the names of the columns are expected: "
                f"the file seems to have no header line. Name its columns in their order, as in {self.form.naming()}"
            )
        return False

    def _data_line(self) -> str:
        if self.form.columns is not None:
            return f"data, and not a header line; a file that has one needs {self.form.setting('columns', '')}"
        return "data, and not the header line once more"

    def _sound_quotes(self) -> str:
        form = self.form
        return (
            f"a line with sound quotes (where quotes are plain characters, {form.setting('quote', '')}; where a "
            f"character stands before them, {form.setting('escape', chr(92))})"
        )

    def _bad_header(self, line: int, lines: int, why: str) -> None:
        raise DataError(
            f"{self.path}, line {line}: cannot read the header ({why}); mend its quotes, or read them as plain "
            f"characters: {self.form.setting('quote', '')}"
        )

    def _records(self, stream: IO[str], trouble: _Trouble) -> Iterator[tuple[int, int, list[str]]]:
        """(line, number of lines, fields) of every row, blank lines left out."""
        if self.quote is None and self.escape is None:
            separator = self.separator
            for line, text in enumerate(stream, 1):
                if text not in _BLANK:
                    yield line, 1, text.rstrip("\r\n").split(separator)
            return
        reader = self._reader(stream)
        line = 1
        while True:
            try:
                for values in reader:
                    end = reader.line_num + 1
                    if values:
                        yield line, end - line, values
                    line = end
                return
            except csv.Error as error:
                # An open quote takes the lines after it along.
                trouble(line, reader.line_num + 1 - line, str(error))
                line = reader.line_num + 1

    def _reader(self, stream: Iterable[str]) -> Any:
        escape = self.escape
        if escape is not None:
            # MySQL's and Hive's word for a value that is missing; the parser would take it for the letter.
            alone = re.compile(
                rf"(^|{re.escape(self.separator)}){re.escape(escape)}N(?={re.escape(self.separator)}|[\r\n]*$)"
            )
            stream = (alone.sub(r"\1", text) for text in stream)
        csv.field_size_limit(MAX_FIELD)  # the module's own, 131,072, is shorter than a chapter of a book
        return csv.reader(
            stream,
            delimiter=self.separator,
            quotechar=self.quote,
            quoting=csv.QUOTE_NONE if self.quote is None else csv.QUOTE_MINIMAL,
            escapechar=escape,
            strict=True,
        )


def _is_value(name: str) -> bool:
    """Whether the name of a column is a number or a date."""
    try:
        return math.isfinite(float(name))
    except ValueError:
        pass
    try:
        datetime.fromisoformat(name)
    except ValueError:
        return False
    return True
