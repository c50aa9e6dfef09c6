"""What every reader of a table gives: the rows of a file, one after the other, and the names of its columns.

All readers give (line, values of the asked columns); a line that cannot be read goes to `Malformed`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from fedrec.core.errors import DataError
from fedrec.data.bulk import Arrays
from fedrec.data.collect import Malformed, Row
from fedrec.data.form import TextForm

_SHOWN_COLUMNS = 20
_SHOWN_LETTERS = 40


class Piece(NamedTuple):
    """Some rows of a table.

    Attributes:
        rows: Gives them one by one, as `TableFile.rows` does.
        columns: Gives them at once, as `fedrec.data.bulk.add` takes them; None if they are only read one by one.
    """

    rows: Callable[[], Iterator[Row]]
    columns: Callable[[], Arrays | None] = lambda: None


class TableFile(ABC):
    """A file, or a folder of files, that holds a table."""

    unit = "line"
    """The word that counts its rows, for messages."""

    def __init__(self, path: Path, form: TextForm) -> None:
        self.path = path
        self.form = form

    @property
    def place(self) -> str:
        """The file that is being read and the word that counts its rows, for messages."""
        return f"{self.path}, {self.unit}"

    @property
    @abstractmethod
    def columns(self) -> list[str]:
        """Names of all columns, as they stand in the file. Raises DataError."""

    @abstractmethod
    def rows(self, names: Sequence[str], malformed: Malformed, single: int = 1) -> Iterator[Row]:
        """(line, values of the columns `names`) for every row that can be read.

        The values of the first `single` of the names, ids among them, stand on one line: one that holds a line end
        is a quote that was left open, and all its lines are malformed.
        """

    def pieces(self, names: Sequence[str], malformed: Malformed, single: int = 1) -> Iterator[Piece]:
        """The same rows in pieces; each is to be read, in one way or the other, before the next is asked for."""
        yield Piece(lambda: self.rows(names, malformed, single))

    def find(self, name: str) -> str | None:
        """The column that `name` names; None if there is none."""
        return name if name in self.columns else None

    def absent(self, names: Sequence[str]) -> list[str]:
        """Those of `names` that name no column."""
        return [name for name in names if self.find(name) is None]

    def starts_with_data(self, names: Sequence[str]) -> bool:
        """Whether the names of the columns look like somebody's data, so that a first line would be lost."""
        return False

    def hints(self, names: Sequence[str]) -> list[str]:
        """Why `names` may not be found, and how to mend it; nothing of the file's content is in it."""
        return []

    def require(self, wanted: Mapping[str, str]) -> None:
        """Check that the columns exist; `wanted` maps the configuration's settings to names. Raises DataError."""
        names = list(wanted.values())
        absent = self.absent(names)
        if self.starts_with_data(names):
            asked = ", ".join(f"{name!r} ({setting})" for setting, name in wanted.items())
            raise DataError(
                f"{self.path}: its first line ({shown(self.columns)}) looks like data and not like the names of "
                f"columns. If the file has no header line, name its {len(self.columns)} columns in their order, as in "
                f"{self.form.naming()}, and ask for them by those names; asked were {asked}. If it has one, give its "
                "columns names that are no numbers or dates"
            )
        if absent:
            columns = self.columns
            lines = [
                f"{self.path} has no column {name!r} ({setting}); found {shown(columns)}{_near(name, columns)} "
                f"Set {setting} to the right name"
                for setting, name in wanted.items()
                if name in absent
            ]
            raise DataError("; ".join([*lines, *self.hints(absent)]))


def shown(columns: Sequence[str]) -> str:
    """The names of columns, for messages: a first line that is none may be very long."""
    cut = (name if len(name) <= _SHOWN_LETTERS else f"{name[:_SHOWN_LETTERS]}..." for name in columns[:_SHOWN_COLUMNS])
    more = len(columns) - _SHOWN_COLUMNS
    return ", ".join(map(repr, cut)) + (f" and {more} more" if more > 0 else "")


def _near(name: str, columns: Sequence[str]) -> str:
    """Which columns may be meant: the same but for blanks and capitals, or else nearly the same."""
    same = [column for column in columns if column.strip().lower() == name.strip().lower()]
    near = same or get_close_matches(name, columns, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else "."


def require_distinct(place: str, columns: Sequence[str]) -> None:
    """Raise DataError if two columns have one name: then no name tells which is meant."""
    if double := [number for number, name in enumerate(columns, 1) if columns.count(name) > 1]:
        # Named by their places: in a file without a header the first line is somebody's data.
        raise DataError(f"{place}: two columns have the same name, among columns {double}; rename one")
