"""How results look in the documents: numbers, spreads and tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def number(value: float) -> str:
    """A number with three significant digits, or as a whole one with thousands."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def interval(spread: dict[str, float] | None) -> str:
    """A spread as its median, with least and most; `-` for none."""
    if not spread:
        return "-"
    return f"{number(spread['median'])} ({number(spread['min'])} to {number(spread['max'])})"


def gib(entry: dict[str, Any]) -> str:
    """The peak memory of a case."""
    return f"{entry['peak_bytes'] / 2**30:.2f} GiB" if "peak_bytes" in entry else "-"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)]) + "\n"


def ratio_line(ratios: dict[str, float]) -> str:
    """Named ratios on one line."""
    return ", ".join(f"{name.replace('_', ' ')}: {number(value)}" for name, value in ratios.items())


def or_failure(entry: dict[str, Any], name: str) -> str:
    """A case's spread, or why it failed."""
    return str(entry["failed"]) if "failed" in entry else interval(entry.get(name))


def in_seconds(entry: dict[str, Any], name: str) -> str:
    """Seconds with one decimal; `-` for none."""
    return "-" if entry.get(name) is None else f"{entry[name]:.1f}"


def measured_with(result: dict[str, Any]) -> str:
    """On what a result was measured."""
    found = result["environment"]
    return f"\n{found['cores']} cores, load {found['load_before']} before; medians, with least and most.\n"
