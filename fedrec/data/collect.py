"""Collects interactions line by line into compact columns, with one answer to a line that cannot be read.

Ids become numbers as they are met, so that a file of any length takes its distinct ids and a few bytes a line.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import DataError
from fedrec.datasets.base import IdColumn, RawData, RawItem

EXACT = 2**53
"""Whole numbers up to this one are exact as float64; a larger float may have been another id once."""

SHORT = 19
"""Any number with fewer digits than this fits 64 bits."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


Row = tuple[int, Sequence[Any]]
"""A line number and the values of some columns."""


class Malformed:
    """What to do with a line that cannot be read: stop and name it (`error`), or leave it out and count it (`skip`)."""

    def __init__(self, mode: Literal["error", "skip"]) -> None:
        self.mode = mode
        self.count = 0
        self.reasons: Counter[str] = Counter()
        """How often each thing was expected and did not come; nothing of the lines themselves."""

    def met(self, where: str, came: object, expected: str, lines: int = 1) -> None:
        """Deal with the line at `where` (file and line number), and so many in all. Raises DataError if told to."""
        self.count += lines
        self.reasons[expected] += lines
        if self.mode == "error":
            shown = came if isinstance(came, str) else repr(came)
            shown = shown if len(shown) <= 120 else f"{shown[:117]}..."
            raise DataError(
                f"{where}: cannot read {shown!r}; expected {expected}. Mend the line, or set dataset.malformed=skip to "
                "leave such lines out and count them"
            )


class Codes(dict[str, int]):
    """Numbers the distinct ids in the order in which they are met; what is no id is a ValueError."""

    def __missing__(self, label: str) -> int:
        id_text(label)
        code = self[label] = len(self)
        return code


def id_text(value: object) -> str:
    """An external id as text: text as it is, whole numbers in decimal. Raises ValueError for anything else."""
    if isinstance(value, str):
        if not value or value.isspace():
            raise ValueError("an id that is not empty")
        if "\n" in value or "\r" in value or "\0" in value:
            raise ValueError("an id without line ends and NUL characters")
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    # A column of whole numbers with gaps often comes as floats: 12.0 is the id 12.
    if isinstance(value, float) and value.is_integer() and abs(value) <= EXACT:
        return str(int(value))
    raise ValueError("an id that is text or a whole number")


class Clock:
    """Reads times; all of a file are numbers, or all are dates (ISO 8601, in UTC unless they say otherwise)."""

    dates: bool | None = None
    """Whether this file's times are dates; None before the first."""

    def read(self, value: object) -> int | float:
        """A number as it is, a date as microseconds since 1970. Raises ValueError."""
        number = self._number(value)
        moment = None if number is not None else self._moment(value)
        if number is None and moment is None:
            raise ValueError("a time that is a finite number or an ISO 8601 date")
        if self.dates is None:
            self.dates = number is None
        if self.dates != (number is None):
            raise ValueError(f"a time that is a {'date' if self.dates else 'number'}, as in the lines before")
        if number is not None:
            return number
        assert moment is not None
        return (moment - _EPOCH) // timedelta(microseconds=1)

    @staticmethod
    def _number(value: object) -> int | float | None:
        if isinstance(value, str):
            try:
                value = int(value)
            except ValueError:
                try:
                    value = float(value)
                except ValueError:
                    return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        if isinstance(value, int) and -(2**63) <= value < 2**63:
            return value  # exact: clocks in nanoseconds do not fit a float
        try:
            number = float(value)
        except OverflowError:
            return None
        return number if math.isfinite(number) else None

    @staticmethod
    def _moment(value: object) -> datetime | None:
        if isinstance(value, str):
            try:
                value = datetime.fromisoformat(value.strip())
            except ValueError:
                return None
        if isinstance(value, date) and not isinstance(value, datetime):
            value = datetime(value.year, value.month, value.day, tzinfo=UTC)
        if not isinstance(value, datetime):
            return None
        return value if value.tzinfo else value.replace(tzinfo=UTC)


def collect(
    place: Callable[[], str], rows: Iterable[Row], malformed: Malformed, *, timed: bool, rated: bool
) -> RawData:
    """Columns from rows of (line, (user, item, time, rating)), in file order; `listed` is None.

    `place` tells the file that is being read and the word that counts its lines ("a.csv, line"). `timed` and `rated`
    say whether the rows carry a time and a rating; else those are not looked at.
    """
    collector = Collector(place, malformed, timed=timed, rated=rated)
    collector.add(rows)
    return collector.raw()


class Columns(NamedTuple):
    """Columns of some rows, whose ids have their numbers already.

    Attributes:
        users: int32 [rows].
        items: int32 [rows].
        times: int64 or float64 [rows].
        ratings: float64 [rows].
    """

    users: NDArray[np.int32]
    items: NDArray[np.int32]
    times: NDArray[np.int64] | NDArray[np.float64]
    ratings: NDArray[np.float64]


class Collector:
    """The same, piece by piece.

    Attributes:
        users: The users' ids so far, with their numbers.
        items: The items' ids so far.
        clock: Reads the times.
        timed: Whether rows carry a time.
        rated: Whether rows carry a rating.
    """

    def __init__(self, place: Callable[[], str], malformed: Malformed, *, timed: bool, rated: bool) -> None:
        self.users, self.items, self.clock = Codes(), Codes(), Clock()
        self.timed, self.rated = timed, rated
        self._place, self._malformed = place, malformed
        self._pieces: list[Columns] = []

    def add(self, rows: Iterable[Row]) -> None:
        """Rows one by one; one that cannot be read goes to `Malformed`. Raises DataError as that does."""
        users, items, clock, timed, rated = self.users, self.items, self.clock, self.timed, self.rated
        user_codes, item_codes, ratings = array("i"), array("i"), array("d")
        times: array[int] | array[float] = array("q")
        moment: int | float = 0
        value = 0.0
        for line, (user, item, time, rating) in rows:
            try:
                user_code = users[user if type(user) is str else id_text(user)]
                item_code = items[item if type(item) is str else id_text(item)]
                if timed:
                    # Most clocks are short whole numbers; the others take the long way.
                    plain = clock.dates is False and type(time) is str and len(time) < SHORT and time.isdecimal()
                    moment = int(time) if plain else clock.read(time)
                if rated:
                    value = rating_of(rating)
            except ValueError as error:
                came = (user, item, *([time] * timed), *([rating] * rated))
                self._malformed.met(f"{self._place()} {line}", came, str(error))
                continue
            user_codes.append(user_code)
            item_codes.append(item_code)
            if timed:
                if isinstance(moment, float) and times.typecode == "q":
                    times = array("d", times)
                times.append(moment)  # type: ignore[arg-type]
            if rated:
                ratings.append(value)
        whole = times.typecode == "q"
        moments = np.array(times, dtype=np.int64) if whole else np.array(times, dtype=np.float64)
        codes = np.array(user_codes, dtype=np.int32), np.array(item_codes, dtype=np.int32)
        self.put(Columns(*codes, moments, np.array(ratings, dtype=np.float64)))

    def put(self, piece: Columns) -> None:
        """Columns of rows that come next, all of which could be read."""
        self._pieces.append(piece)

    def raw(self) -> RawData:
        """All that has come; this is the end."""
        count = self._malformed.count
        users, items = self._column("users", np.int32), self._column("items", np.int32)
        # One time that is no whole number, and all are numbers with a fraction.
        kind = np.float64 if any(piece.times.dtype == np.float64 for piece in self._pieces) else np.int64
        times = self._column("times", kind) if self.timed else None
        ratings = self._column("ratings", np.float64) if self.rated else None
        self._pieces = []
        counts = {"malformed": count} if count else {}
        return RawData(
            IdColumn(users, list(self.users)), IdColumn(items, list(self.items)), times, ratings, None, counts
        )

    def _column(self, name: str, kind: type[np.generic]) -> NDArray[Any]:
        parts = [getattr(piece, name) for piece in self._pieces]
        return np.concatenate([np.zeros(0, dtype=kind), *parts], dtype=kind)


def with_items(raw: RawData, listed: list[RawItem], counts: dict[str, int]) -> RawData:
    """The same interactions beside a list of items; `counts` that are zero are left out."""
    met = {rule: number for rule, number in counts.items() if number}
    return RawData(raw.users, raw.items, raw.times, raw.ratings, tuple(listed), raw.counts | met)


def sentence(parts: Iterable[object]) -> str:
    """One sentence from an item's attributes: what is empty is passed over, lists are enumerated."""
    texts = (" ".join(_flat(part).split()) for part in parts)
    return " ".join(text if text.endswith((".", "!", "?")) else f"{text}." for text in texts if text)


def _flat(part: object) -> str:
    if part is None or (isinstance(part, float) and math.isnan(part)):
        return ""
    if isinstance(part, list | tuple):
        return ", ".join(text for text in map(_flat, part) if text)
    return str(part)


def rating_of(value: object) -> float:
    """A rating as a number. Raises ValueError for what is no finite one."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("a rating that is a number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError("a rating that is a finite number")
    return number
