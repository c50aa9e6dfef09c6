"""The report as a dictionary, as lines and as a table."""

from __future__ import annotations

import io
import json

from rich.console import Console

from fedrec.data.report import as_dict, as_lines, as_table
from fedrec.data.types import DataReport, DataSummary

REPORT = DataReport(DataSummary(2000, 50, 5000), DataSummary(10, 20, 100), {"duplicate": 1200, "made_up": 1})


def test_lines_and_table_say_the_same() -> None:
    lines = as_lines(REPORT)
    assert lines[0].split() == ["before", "after"]
    assert lines[1].split() == ["users", "2,000", "10"]
    assert lines[4].split() == ["density", "5.0000%", "50.0000%"]
    assert lines[5] == "1,200 repeated interactions of a user with an item, the first in time is kept"
    assert lines[6] == "1 made_up"
    console = Console(file=io.StringIO(), width=120)
    console.print(as_table(REPORT, "ml_1m"))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for text in ("ml_1m", "2,000", "5.0000%", "50.0000%", "1,200", "the first in time is kept", "made_up"):
        assert text in shown


def test_the_dictionary_is_json() -> None:
    found = json.loads(json.dumps(as_dict(REPORT)))
    assert found["before"] == {"users": 2000, "items": 50, "interactions": 5000, "density": 0.05}
    assert found["counts"] == {"duplicate": 1200, "made_up": 1}


def test_nothing_has_no_density() -> None:
    assert DataSummary(0, 0, 0).density == 0.0
