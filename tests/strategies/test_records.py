"""What nodes say, as a log may show it."""

from __future__ import annotations

import pytest

from exchanges.records import shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no such file", "no such file"),
        ("one\n2026-01-01 INFO round 9/9\r\ttwo", "one 2026-01-01 INFO round 9/9 two"),
        ("\x1b[2Jgone\x00", "\\x1b[2Jgone\\x00"),
        ("Amélie, \u202eevil", "Amélie, \\u202eevil"),
        ("a" * 201, "a" * 200 + "..."),
        (7, "7"),
    ],
)
def test_text_from_a_node_is_one_short_line_without_control_characters(text: object, expected: str) -> None:
    assert shown(text) == expected
