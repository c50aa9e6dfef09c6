"""Text with fields in lines: CSV, TSV, `::`, RecBole's atomic files; with or without a header line.

Parsing is the standard library's, so that every line has its right number.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from typing_extensions import override

from fedrec.core.errors import DataError
from fedrec.data.collect import Malformed, Row
from fedrec.data.form import TextForm
from fedrec.data.reading import open_text
from fedrec.data.rows import TableFile, require_distinct

MAX_FIELD = 2**26
"""Characters that one field may have: enough for any text, and a quote that was left open does not fill the memory."""

_TYPES = ("token", "token_seq", "float", "float_seq")
"""What RecBole writes behind the name of a column: `user_id:token`."""
_BLANK = ("\n", "\r\n", "\r")
_Trouble = Callable[[int, int, str], None]
"""Called with a line, how many lines are lost from there on, and why."""


class DelimitedFile(TableFile):
    """A text file with one row a line, or more where a quoted field holds line ends; blank lines are passed over."""

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
        columns = self.columns
        picks = [columns.index(self.find(name) or name) for name in names]
        header = [columns[pick] for pick in picks]
        first, width = picks[0], len(columns)
        before = self.form.columns is None  # the header line is still to come

        def lost(line: int, lines: int, why: str) -> None:
            malformed.met(f"{self.place} {line}", why, self._sound_quotes(), lines)

        with open_text(self.path, self.form) as stream:
            seen = False
            for line, lines, values in self._records(stream, lost):
                if before:
                    before = False
                    continue
                if len(values) != width:
                    why = f"{width} columns as {'named' if self.form.columns else 'in the header'}, {len(values)} came"
                    malformed.met(f"{self.place} {line}", self.separator.join(values), why, lines)
                    continue
                picked = [values[pick] for pick in picks]
                if lines > 1 and any("\n" in value or "\r" in value for value in picked[:single]):
                    lost(line, lines, picked[0])
                    continue
                if picked[0] == columns[first] and self._is_header(picked, header, line, seen):
                    malformed.met(f"{self.place} {line}", self.separator.join(values), self._data_line(), lines)
                    continue
                seen = True
                yield line, picked

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
