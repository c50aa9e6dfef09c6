"""What a run shows while it runs: a bar in a terminal, plain lines in a log; fed with records of `metrics.jsonl`."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.text import Text
from typing_extensions import override

from fedrec.data.report import as_table
from fedrec.data.types import DataReport

log = logging.getLogger("fedrec")

_QUIET = 10.0  # seconds between two plain lines that have nothing special to say
_WINDOW = 20  # rounds that the estimate of the remaining time is made from


class RunProgress:
    """Shows a run's rounds. In a terminal one line that changes; otherwise (a file, a pipe, CI) a line now and then.

    Use it inside `with`; call `stage` for what happens before the first round and `update` for every round's record.
    """

    def __init__(self, console: Console, *, shows_data: bool = True) -> None:
        """On a console; without the size of the data if that was shown before."""
        self._console, self._shows_data = console, shows_data
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._seconds: deque[float] = deque(maxlen=_WINDOW)
        self._begun = False  # the first round, in which workers start, says nothing of the others
        self._validation = ""
        self._phase = ""
        self._shown = float("-inf")

    def __enter__(self) -> Self:
        """Begin to show."""
        if self._console.is_terminal:
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[detail]}"),
                console=self._console,
            )
            self._task = self._bar.add_task("starting", total=None, detail="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the last state of the bar standing."""
        if self._bar is not None:
            self._bar.stop()

    def stage(self, text: str) -> None:
        """Say what happens while there is no round to show."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=text, detail="", completed=0, total=None)
        else:
            self._print(text)

    def work(self, what: str, done: int, total: int) -> None:
        """Say how far something long has come, before the first round; in a log now and then."""
        text = f"{what}: {done:,} of {total:,}"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=what, detail=text, completed=done, total=total)
        elif done >= total or time.monotonic() - self._shown >= _QUIET:
            self._shown = time.monotonic()
            self._print(text)

    def data(self, report: DataReport, name: str) -> None:
        """Show the size of the data, before and after its preparation, if they are new to who reads."""
        if self._shows_data:
            self._console.print(as_table(report, f"Data: {name}"))

    def note(self, text: str) -> None:
        """A line that stays: a warning of the run, or its log."""
        self._print(text)

    @contextmanager
    def warnings(self) -> Iterator[None]:
        """Meanwhile show what the log warns of."""
        handler = _Notes(self)
        log.addHandler(handler)
        try:
            yield
        finally:
            log.removeHandler(handler)

    def update(self, record: Mapping[str, Any]) -> None:
        """One round has ended.

        Args:
            record: Its line of `metrics.jsonl`; `round` and `rounds` must be there, everything else may be missing.
        """
        number, total = int(record["round"]), int(record["rounds"])
        if (seconds := record.get("seconds")) is not None and self._begun:
            self._seconds.append(float(seconds))
        self._begun = True
        validated = _metrics(record.get("validation"))
        self._validation = validated or self._validation
        phase = str(record.get("phase") or "")
        description = f"round {number}/{total}" + (f" {phase}" if phase else "")
        loss = _loss(record["loss"]) if "loss" in record else ""
        moved = _moved(record.get("bytes_per_user"))
        parts = [loss, self._validation, moved, self._remaining(total - number)]
        detail = "  ".join(part for part in parts if part)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=description, detail=detail, completed=number, total=total)
        elif self._worth_a_line(number, total, bool(validated), phase):
            self._print(f"{description}  {detail}")
        self._phase = phase

    def _worth_a_line(self, number: int, total: int, validated: bool, phase: str) -> bool:
        now = time.monotonic()
        due = number in (1, total) or validated or phase != self._phase or now - self._shown >= _QUIET
        if due:
            self._shown = now
        return due

    def _remaining(self, rounds: int) -> str:
        if rounds <= 0 or not self._seconds:
            return ""
        return f"{duration(rounds * sum(self._seconds) / len(self._seconds))} left"

    def _print(self, text: str) -> None:
        # A Text is printed as it is: the brackets in a log are no markup, and numbers need no colours.
        self._console.print(Text(text), soft_wrap=True)


class _Notes(logging.Handler):
    """Hands warnings on to whoever shows the run."""

    def __init__(self, progress: RunProgress) -> None:
        super().__init__(logging.WARNING)
        self._progress = progress

    @override
    def emit(self, record: logging.LogRecord) -> None:
        self._progress.note(f"{record.levelname} {record.getMessage()}")


def duration(seconds: float) -> str:
    """Seconds as a person says them: `8 s`, `3:05 min`, `2:10 h`."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes = round(seconds / 60)
    return f"{whole // 60}:{whole % 60:02d} min" if minutes < 100 else f"{minutes // 60}:{minutes % 60:02d} h"


def amount(count: float) -> str:
    """Bytes with a unit of powers of ten, as networks are billed: `950 B`, `12.3 kB`, `4.0 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5 or unit == "GB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def figure(value: float | None) -> str:
    """A metric or loss for people: four places, or a dash for what is not finite (null in a run's files)."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.4f}"


def _loss(loss: Any) -> str:
    return f"loss {figure(loss)}" if isinstance(loss, int | float) else "loss -"


def _metrics(validation: Any) -> str:
    """The one metric that is shown: NDCG@10, or the first of NDCG, or the first there is."""
    if not isinstance(validation, Mapping) or not validation:
        return ""
    names = [name for name, value in validation.items() if isinstance(value, int | float)]
    ranked = sorted(names, key=lambda name: (name != "ndcg@10", not name.startswith("ndcg@"), "/" in name))
    return f"{ranked[0]} {figure(validation[ranked[0]])}" if ranked else ""


def _moved(per_user: Any) -> str:
    total = per_user.get("total") if isinstance(per_user, Mapping) else None
    return f"{amount(total)}/user" if isinstance(total, int | float) else ""
