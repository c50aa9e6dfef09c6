"""How the metrics of lists of recommendations are shown, wherever a finished run is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from commands.progress import figure

KEY = "beyond_accuracy"
"""In `summary.json`."""
FIGURES = ("coverage", "gini", "popularity", "novelty", "diversity")
"""Of the metrics, without the cut-off (`fedrec.evaluation.beyond_accuracy`)."""


def at(found: Mapping[str, Any], k: int = 10) -> dict[str, float]:
    """Of what a summary has of a run, the metrics of lists of `k` items, by their names without it."""
    return {name: found[f"{name}@{k}"] for name in FIGURES if found.get(f"{name}@{k}") is not None}


def rows_of(found: Mapping[str, Any]) -> list[list[str]]:
    """A row for each length of lists: it, and the metrics in the order of `FIGURES`."""
    ks = sorted({int(name.rpartition("@")[2]) for name in found if "@" in name})
    return [[str(k), *(figure(found.get(f"{name}@{k}")) for name in FIGURES)] for k in ks]


def lists_table(found: Mapping[str, Any]) -> Table:
    """The metrics, a row for each length of lists."""
    table = Table(title="Beyond accuracy, at test", title_justify="left")
    for column in ("items", *FIGURES):
        table.add_column(column, justify="right")
    for row in rows_of(found):
        table.add_row(*row)
    return table
