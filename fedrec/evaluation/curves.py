"""How good a run was after how many bytes, and after what simulated time: its curve, from the lines of `metrics.jsonl`.

A curve has a point for every round that was validated. Bytes are the means over all users since the start, as the meter
counts them: what validation itself moved is no part of them.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedrec.core.disk import reading
from fedrec.core.strict_json import number, parsed_object
from fedrec.core.whole_files import write_text
from fedrec.evaluation.compared_by import curve_metric

log = logging.getLogger("fedrec")

METRICS, CURVE = "metrics.jsonl", "curve.csv"

WAYS = ("up", "down", "one_time", "merges", "total")
"""Bytes of one user, in the mean, that a point has."""

SECONDS = "simulated_seconds"
"""Of a record, and of a summary: simulated seconds since the start, where a network is simulated."""


class Point(NamedTuple):
    """One validation.

    Attributes:
        round: After which it was, or after which epoch.
        bytes: Bytes per user until then, by `WAYS`; None if nothing is sent, for the model is not federated.
        value: The metric.
        seconds: Simulated seconds until then; None if no network was simulated.
    """

    round: int
    bytes: Mapping[str, float] | None
    value: float
    seconds: float | None = None


def curve(records: Iterable[Mapping[str, Any]], metric: str) -> list[Point]:
    """The points of a run, from its rounds' records; those without a validation of `metric` are passed over.

    Raises ValueError, or another error of a wrong form, if a record is not one of a round.
    """
    points = []
    for record in records:
        value = record.get("validation", {}).get(metric)
        if value is not None:
            moved = record.get("bytes_per_user")
            ways = None if moved is None else {way: number(moved.get(way, 0.0)) for way in WAYS}
            seconds = number(record[SECONDS]) if SECONDS in record else None
            points.append(Point(int(record["round"]), ways, number(value), seconds))
    return points


def reached(points: Sequence[Point], target: float) -> Point | None:
    """The first point at or above `target`; None if there is none. Nothing is read between two validations."""
    return next((point for point in points if point.value >= target), None)


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run folder's `metrics.jsonl`, none if it has no such file.

    A last line that breaks off, because the process that wrote it was killed or its disk was full, is left out, which
    the log says. Raises StoreError if any other line is damaged.
    """
    path = folder / METRICS
    with reading(str(path), "restore its files, or leave it out"):
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        whole, _, torn = text.rpartition("\n")
        records = [parsed_object(line) for line in whole.split("\n")] if whole else []
        if torn:
            try:
                records.append(parsed_object(torn))
            except ValueError:
                log.warning("%s: its last line breaks off, and is left out", path)
        return records


def write_curve(folder: Path) -> None:
    """Write the curve of the run in `folder` as `curve.csv` beside its metrics, for spreadsheets and plots.

    Raises StoreError if the metrics cannot be read, OSError if the disk refuses the curve.
    """
    records = read_records(folder)
    validated = next((record["validation"] for record in records if record.get("validation")), None)
    if validated is None:
        return
    metric = curve_metric(validated)
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    points = curve(records, metric)
    timed = any(point.seconds is not None for point in points)
    lines.writerow(["round", *WAYS, *([SECONDS] if timed else []), metric])
    for point in points:
        ways = [""] * len(WAYS) if point.bytes is None else [point.bytes[way] for way in WAYS]
        lines.writerow([point.round, *ways, *([point.seconds] if timed else []), point.value])
    write_text(folder / CURVE, text.getvalue())
