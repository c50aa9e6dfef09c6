"""What a member's values are searched over: data beside its dataclass, in the class attribute `space`.

`fedrec tune --trials` reads them. A key of a section is written with a dot (`server.lr`); what is not in the space of a
member stays as it is typed, or as the member's file has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Real:
    """A number between two.

    Attributes:
        low: The least.
        high: The most.
        log: Whether equal ratios are equally far apart, as of rates.
    """

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Whole:
    """A whole number between two, as `Real`."""

    low: int
    high: int
    log: bool = False


@dataclass(frozen=True)
class OneOf:
    """One of several values.

    Attributes:
        values: The values.
    """

    values: tuple[str | int | float | bool, ...]


Axis: TypeAlias = Real | Whole | OneOf
Space: TypeAlias = Mapping[str, Axis]
"""Axes by key."""
