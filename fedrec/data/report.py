"""The report of a preparation for people and for programs: sizes before and after, and what every rule met."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedrec.data.types import DataReport, DataSummary

if TYPE_CHECKING:
    from rich.table import Table

MEANING = {
    "malformed": "lines that could not be read, left out",
    "malformed_item": "lines of the item list that could not be read, left out",
    "duplicate_item": "items listed again, the first is kept",
    "unrated_item": "listed items without an interaction",
    "unknown_item": "interactions with an item that is not listed, left out",
    "low_rating": "interactions rated below dataset.min_rating, left out",
    "duplicate": "repeated interactions of a user with an item, the first in time is kept",
    "k_core": "interactions of users or items below dataset.k_core, left out",
    "users_too_short": "users with fewer than 3 interactions, trained but not evaluated",
    "users_after_cut": "users without an interaction before the first cut, left out with all of theirs",
    "users_not_tested": "users without an interaction after the second cut, trained but not tested",
    "items_after_cut": "items without an interaction before the second cut, candidates that nobody trains",
}
"""What each name in `DataReport.counts` says."""


def as_dict(report: DataReport) -> dict[str, Any]:
    """The report as plain values, for JSON."""
    return {"before": _values(report.before), "after": _values(report.after), "counts": dict(report.counts)}


def as_lines(report: DataReport) -> list[str]:
    """The report as plain text lines, for a log."""
    lines = [f"{'':<14}{'before':>14}{'after':>14}"]
    lines += [f"{name:<14}{before:>14}{after:>14}" for name, before, after in _rows(report)]
    return lines + [f"{number:,} {MEANING.get(rule, rule)}" for rule, number in report.counts.items()]


def as_table(report: DataReport, title: str) -> Table:
    """The report as a table for a terminal."""
    from rich.table import Table

    table = Table(title=title)
    table.add_column("")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    for row in _rows(report):
        table.add_row(*row)
    table.add_section()
    for rule, number in report.counts.items():
        table.add_row(MEANING.get(rule, rule), f"{number:,}", "")
    return table


def _values(summary: DataSummary) -> dict[str, float]:
    return {
        "users": summary.users,
        "items": summary.items,
        "interactions": summary.interactions,
        "density": summary.density,
    }


def _rows(report: DataReport) -> list[tuple[str, str, str]]:
    before, after = _values(report.before), _values(report.after)
    return [(name, _shown(name, before[name]), _shown(name, after[name])) for name in before]


def _shown(name: str, value: float) -> str:
    return f"{value:.4%}" if name == "density" else f"{value:,}"
