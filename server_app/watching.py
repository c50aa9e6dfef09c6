"""Who is told how a run goes on: a person, the log, and the run folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from federation.checkpoint import Checkpoint
from fedrec.core.strict_json import finite
from fedrec.data.types import DataReport
from fedrec.stages.base import Release
from server_app.ledger import Ledger
from server_app.run_folder import RunFolder
from server_app.trackers.base import Tracking
from server_app.warnings import Warnings

log = logging.getLogger("fedrec")

_LOG_EVERY = 10.0
"""Seconds between two lines in the log about the same long work."""


class Watcher(Protocol):
    """Shows a run to a person while it goes on."""

    def stage(self, text: str) -> None:
        """What happens now, before the first round or after the last."""

    def work(self, what: str, done: int, total: int) -> None:
        """How far something long has come."""

    def data(self, report: DataReport, name: str) -> None:
        """The size of the data, before and after its preparation."""

    def update(self, record: dict[str, Any]) -> None:
        """A round has ended."""


class Silent:
    """Shows nothing."""

    def stage(self, text: str) -> None:
        """As in `Watcher`."""

    def work(self, what: str, done: int, total: int) -> None:
        """As in `Watcher`."""

    def data(self, report: DataReport, name: str) -> None:
        """As in `Watcher`."""

    def update(self, record: dict[str, Any]) -> None:
        """As in `Watcher`."""


class Progress:
    """Tells the watcher how far something long has come, and the log now and then."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._logged = time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        """`done` of `total` are done."""
        self._watcher.work(what, done, total)
        if done >= total or time.monotonic() - self._logged >= _LOG_EVERY:
            self._logged = time.monotonic()
            log.info("%s: %d of %d", what, done, total)


class Recorder:
    """The strategy's observer: metrics and checkpoints into the run folder, rounds to watcher, tracker and log."""

    def __init__(
        self, folder: RunFolder, watcher: Watcher, checkpoints_kept: int, ledger: Ledger | None, tracking: Tracking
    ) -> None:
        self._folder = folder
        self._tracking = tracking
        self._ledger = ledger
        self._checkpoints_kept = checkpoints_kept
        self._watcher = watcher
        self._warnings = Warnings()

    def on_release(self, round: int, releases: Sequence[Release]) -> None:
        """Before anything that is noised leaves the round: it goes into the ledger first."""
        if self._ledger is not None:
            self._ledger.spend(round, releases)

    def on_round(self, record: dict[str, Any]) -> None:
        """As in `Observer`."""
        if self._ledger is not None and ("validation" in record or record["round"] == record["rounds"]):
            record["privacy"] = self._ledger.report(after=record["round"])
        record = finite(record)
        self._folder.add_metrics(record)
        self._watcher.update(record)
        self._tracking.tell(record)
        number = f"{record['round']}/{record['rounds']}"
        loss = {"loss": record["loss"]} if "loss" in record else {}
        log.info("round %s %s %s", number, record["phase"], shown({**loss, **at_ten(record.get("validation", {}))}))
        for line in self._warnings.add(record):
            log.warning("%s", line)

    def on_checkpoint(self, checkpoint: Checkpoint) -> None:
        """As in `Observer`."""
        self._folder.write_checkpoint(checkpoint, self._checkpoints_kept)


def at_ten(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Of metrics, those that stop at ten."""
    return {name: value for name, value in metrics.items() if "@10" in name}


def shown(values: Mapping[str, float | None]) -> str:
    """Numbers by name, on one line; `-` for one that there is not."""
    return " ".join(f"{name}={'-' if value is None else f'{value:.4f}'}" for name, value in values.items())
