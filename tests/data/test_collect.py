"""What is an id, a time, a sentence; and the one answer to a line that cannot be read."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pytest

from fedrec.core.errors import DataError
from fedrec.data.collect import Clock, Malformed, collect, id_text, sentence
from fedrec.datasets.base import RawData


@pytest.mark.parametrize(
    ("value", "text"),
    [("007", "007"), (" a ", " a "), (7, "7"), (2**70, str(2**70)), (12.0, "12"), (-1, "-1"), ("nan", "nan")],
)
def test_ids_become_text(value: object, text: str) -> None:
    assert id_text(value) == text


@pytest.mark.parametrize("value", ["", "  ", "a\nb", "a\r", "a\0", None, True, 1.5, float("nan"), 2.0**60, b"a", ["a"]])
def test_what_is_no_id(value: object) -> None:
    with pytest.raises(ValueError, match="an id"):
        id_text(value)


def test_times_are_exact_numbers_or_dates() -> None:
    clock = Clock()
    assert [clock.read(value) for value in ("12", 3, "1.5", 2**62)] == [12, 3, 1.5, 2**62]
    for value in ("", "soon", None, "nan", float("inf"), True, "2020-01-01"):
        with pytest.raises(ValueError, match="a time"):
            clock.read(value)
    dates = Clock()
    moment = datetime(2020, 1, 1, 12, tzinfo=UTC)
    expected = int(moment.timestamp() * 1e6)
    same = ("2020-01-01 12:00:00", "2020-01-01T13:00:00+01:00", moment, moment.replace(tzinfo=None))
    assert [dates.read(value) for value in same] == [expected] * 4
    assert dates.read(date(2020, 1, 1)) < expected
    with pytest.raises(ValueError, match="a date, as in the lines before"):
        dates.read("5")


ROWS = [
    (2, ("u", "a", "1", "5")),
    (3, ("", "a", "1", "5")),
    (4, ("u", "b", "never", "5")),
    (5, ("u", "b", "1", "good")),
    (6, ("u", "c", "2.5", "nan")),
    (7, ("v", "c", "2.5", "4.5")),
    (8, ("v", "d", "99999999999999999999", "4")),
]


def gathered(mode: Any, rows: Any = ROWS) -> RawData:
    return collect(lambda: "/f.csv, line", rows, Malformed(mode), timed=True, rated=True)


def test_malformed_lines_are_left_out_and_counted() -> None:
    raw = gathered("skip")
    assert [raw.users.labels[code] for code in raw.users.codes] == ["u", "v", "v"]
    assert [raw.items.labels[code] for code in raw.items.codes] == ["a", "c", "d"]
    assert raw.times is not None
    assert raw.times.tolist() == [1.0, 2.5, 1e20]
    assert raw.ratings is not None
    assert raw.ratings.tolist() == [5.0, 4.5, 4.0]
    assert raw.counts == {"malformed": 4}


@pytest.mark.parametrize(
    ("row", "expected"),
    [(1, "an id that is not empty"), (2, "a time that"), (3, "a rating that"), (4, "a rating that")],
)
def test_or_they_stop_the_run_with_their_place(row: int, expected: str) -> None:
    with pytest.raises(DataError, match=rf"^/f.csv, line {row + 2}: cannot read .*{expected}.*dataset.malformed=skip"):
        gathered("error", [ROWS[0], ROWS[row]])


def test_whole_times_stay_whole() -> None:
    raw = gathered("error", ROWS[:1])
    assert raw.times is not None
    assert raw.times.dtype == np.int64


def test_sentences() -> None:
    assert sentence(("Heat (1995)", ["Action", "", "Crime"], None, "  two\n lines. ", float("nan"), 3)) == (
        "Heat (1995). Action, Crime. two lines. 3."
    )
    assert sentence(()) == sentence(("", [], None)) == ""
