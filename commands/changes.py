"""What a configuration changes of the defaults, as a table and as plain data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from fedrec.config.describe import ABSENT, Change


def change_as_dict(change: Change) -> Mapping[str, Any]:
    """A change for JSON, where an absent key is one that is not there."""
    return {name: value for name, value in change._asdict().items() if value is not ABSENT}


def shown(value: object) -> str:
    """A value as JSON; a dash where there is none."""
    return ABSENT.value if value is ABSENT else json.dumps(value, ensure_ascii=False)


def changes_table(found: list[Change]) -> Table | Text:
    """What differs from the defaults, for people."""
    if not found:
        return Text("Every value is the default.", style="dim")
    table = Table(title="Changed from the defaults", title_justify="left")
    for column in ("key", "default", "now"):
        table.add_column(column, overflow="fold")
    for change in found:
        # Text, not str: a list's brackets are no markup.
        table.add_row(change.key, Text(shown(change.default), style="dim"), Text(shown(change.value), style="bold"))
    return table
