"""Going on with a run that was interrupted, in its own folder: from its newest sound checkpoint, with its own data."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from federation.base import FederatedStrategy
from federation.checkpoint import Checkpoint
from fedrec import __version__
from fedrec.core.errors import DataError
from fedrec.wire.code import code_digest
from server_app.run_folder import MANIFEST, RunFolder

log = logging.getLogger("fedrec")

_RESUMED = "resumed"


class Resumption(NamedTuple):
    """Where a run goes on.

    Attributes:
        checkpoint: After which it goes on; None if it was interrupted before the first one: it begins again.
        kept: What each checkpoint that is kept needs, this one the last.
    """

    checkpoint: Checkpoint | None
    kept: list[int]

    @property
    def round(self) -> int:
        """The last round that is not done again."""
        return self.checkpoint.round if self.checkpoint else 0

    @property
    def told(self) -> int:
        """The last round whose line is among the metrics: that of the last one comes when it is ranked."""
        return self.round - (self.checkpoint is not None and self.checkpoint.record is not None)


def prepare(folder: RunFolder) -> Resumption:
    """Find where the run goes on, and take the folder back there. Raises StoreError if it cannot go on."""
    found = Resumption(*folder.checkpoints.newest())
    folder.cut_metrics(found.told)
    log.info("the run goes on after round %d", found.round)
    return found


def manifest_of_resumed(folder: RunFolder, made: Mapping[str, Any], round: int) -> dict[str, Any]:
    """The manifest that the run began with, and a line for each time that it was resumed.

    Raises DataError if the data are not those that the run began with.
    """
    before = folder.read_json(MANIFEST)
    if not before:  # interrupted before it was written, and before the first round
        return {**made, _RESUMED: [_line(round)]}
    if before["data"] != made["data"]:
        differing = sorted(key for key, value in made["data"].items() if before["data"].get(key) != value)
        raise DataError(
            f"the data are not those that the run in {folder.path} began with ({', '.join(differing)} differ): put the "
            "data back as they were, or start a new run"
        )
    if before["code"] != code_digest():
        log.warning(
            "the run began with fedrec %s (code %s) and goes on with fedrec %s (code %s): its result may differ from "
            "that of either alone",
            before["fedrec"],
            before["code"],
            __version__,
            code_digest(),
        )
    return {**before, _RESUMED: [*before.get(_RESUMED, []), _line(round)]}


def go_on(strategy: FederatedStrategy, found: Resumption, manifest: Mapping[str, Any]) -> None:
    """Let a strategy stand where the run goes on."""
    strategy.resume(found.checkpoint, found.kept, [line["after_round"] for line in manifest[_RESUMED]])


def _line(round: int) -> dict[str, Any]:
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"after_round": round, "at": when, "fedrec": __version__, "code": code_digest()}
