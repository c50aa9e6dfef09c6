"""JSON as the standard has it, written and read: Python itself takes NaN and Infinity for numbers, others do not.

A number that is not finite is written as null: whoever reads it sees that there is no value, and cannot rank by it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn


def finite(values: Any) -> Any:
    """The same plain data, with None in the place of every number that is not finite."""
    if isinstance(values, float):
        return values if math.isfinite(values) else None
    if isinstance(values, Mapping):
        return {name: finite(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [finite(value) for value in values]
    return values


def json_line(values: Any, *, ascii_only: bool = True) -> str:
    """Plain data as one line of JSON."""
    return json.dumps(finite(values), allow_nan=False, ensure_ascii=ascii_only)


def json_page(values: Any) -> str:
    """Plain data as JSON that is indented for people, with a line break at its end."""
    return json.dumps(finite(values), allow_nan=False, indent=2) + "\n"


def parsed(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError if it is not JSON, NaN and Infinity included."""
    return json.loads(text, parse_constant=_refused)


def parsed_object(text: str | bytes) -> dict[str, Any]:
    """The object that a JSON text is. Raises ValueError if it is anything else."""
    found = parsed(text)
    if not isinstance(found, dict):
        raise ValueError(f"expected a JSON object, it holds a {type(found).__name__}")
    return found


def number(value: object) -> float:
    """A number of parsed JSON. Raises ValueError if it is none: null, a text, true."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"expected a number, got {value!r}")
    return float(value)


def _refused(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number that JSON has")
