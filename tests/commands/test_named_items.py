"""Items as people type them: with blanks, quotes, commas and line ends."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commands.named_items import named_items

IDS = ("B001  ", "a,b", '"Heroes', "plain", " x", "y ", " y", 'say "hi"', "z", '"z"')


@pytest.mark.parametrize(
    ("history", "rows", "unknown"),
    [
        ("B001  ", [0], []),
        ("B001", [0], []),
        ('"B001  "', [0], []),
        ('plain, "B001  "', [3, 0], []),
        ('"a,b"', [1], []),
        ('plain,"a,b"\nz', [3, 1, 8], []),
        ('"Heroes', [2], []),
        ('"Heroes,plain', [2, 3], []),
        ('say "hi"', [7], []),
        ('"say ""hi"""', [7], []),
        ("x", [4], []),
        (" y", [6], []),
        ("y", [], ["y"]),
        ("z", [8], []),
        ('"z"', [9], []),
        ("plain\r\nplain\rz", [3, 8], []),
        ("plain,never", [3], ["never"]),
        (" , \n", [], []),
        ("", [], []),
    ],
)
def test_a_history_names_items(history: str, rows: list[int], unknown: list[str]) -> None:
    assert named_items(history, IDS) == (rows, unknown)


LETTERS = st.characters(codec="utf-8", exclude_characters="\0\r\n")


@given(st.lists(st.text(LETTERS, min_size=1, max_size=5).filter(str.strip), min_size=1, max_size=6, unique=True))
def test_any_ids_can_be_named_in_quotes_and_one_as_it_is(ids: list[str]) -> None:
    line = io.StringIO()
    csv.writer(line, quoting=csv.QUOTE_ALL, lineterminator="").writerow(ids)
    plain = [piece for piece in line.getvalue().split(",") if piece.strip()]
    if not all(piece.strip() in [one.strip() for one in ids] for piece in plain):  # else the ids have quotes themselves
        assert named_items(line.getvalue(), ids) == (list(range(len(ids))), [])
    for row, name in enumerate(ids):
        if "," not in name:
            assert named_items(name, ids) == ([row], [])
