"""The items of a history as somebody types it: ids with a comma or a line end between them, quoted or not."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence

_LINE_END = re.compile(r"\r\n|\r|\n")


def named_items(history: str, ids: Sequence[str]) -> tuple[list[int], list[str]]:
    """The rows of the items that `history` names among `ids`, each once and in order, and the names that fit none.

    A name is an id as it is written there. Blanks at the ends of either are passed over where that leaves one item.
    Quotes are part of an id if an id has them; else they hold together an id with a comma in it.
    """
    known = _Known(ids)
    lines = _LINE_END.split(history)
    plain = known.rows_of(piece for line in lines for piece in line.split(","))
    if not plain[1]:
        return plain
    try:
        return known.rows_of(field for line in csv.reader(lines, skipinitialspace=True) for field in line)
    except csv.Error:  # a quote and more behind it than a field may have
        return plain


class _Known:
    """Finds items by the names that people give them."""

    def __init__(self, ids: Sequence[str]) -> None:
        self.row_of = {item: row for row, item in enumerate(ids)}
        self.bare: dict[str, list[int]] = {}
        for item, row in self.row_of.items():
            if item != item.strip():
                self.bare.setdefault(item.strip(), []).append(row)

    def rows_of(self, names: Iterable[str]) -> tuple[list[int], list[str]]:
        """Rows, each once, and what is not known; blank names are passed over."""
        rows: dict[int, None] = {}
        unknown = []
        for name in names:
            if not name.strip():
                continue
            row = self.row_of.get(name, self.row_of.get(name.strip()))
            if row is None and len(padded := self.bare.get(name.strip(), [])) == 1:
                row = padded[0]
            if row is None:
                unknown.append(name.strip())
            else:
                rows[row] = None
        return list(rows), unknown
