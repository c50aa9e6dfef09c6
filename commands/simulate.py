"""`fedrec simulate`: `flwr run` with a true exit status, a visible log, and nothing left running or lying about."""

from __future__ import annotations

import dataclasses
import queue
import re
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console

from commands.beyond_accuracy import evaluated
from commands.flower_app import assemble, run_config
from commands.progress import RunProgress
from commands.resources import cluster, explain, federation_config, require
from commands.signals import signals_as_exceptions
from commands.superlink import NAME, SuperLink
from fedrec.config.paths import assign, key_of, portable, settle, working_directory
from fedrec.config.resume import PLACES
from fedrec.config.schema import RunConfig, SimulationConfig
from fedrec.core.disk import reading
from fedrec.core.errors import FederationError
from fedrec.core.strict_json import parsed_object
from fedrec.evaluation.curves import METRICS
from server_app.manifest import new_run_id
from server_app.resuming import prepare
from server_app.run_folder import SUMMARY, RunFolder

if TYPE_CHECKING:
    from commands.candidates import Candidate

LOG = "flower.log"
"""In the run folder: all that Flower and the app's processes said."""

_POLL = 0.2
_LOOK = 2.0
_TAIL = 200
_GRACE = 20.0
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
# What our own apps say (rounds are shown otherwise), and what is wrong; Flower's "INFO :" is for who looks for it.
_WORTH_SHOWING = re.compile(r"INFO (?!:|round \d)|WARNING\b|ERROR\b|CRITICAL\b")
_FAILED = "ERROR the run has failed: "
_REASON = re.compile(r"(?:\w+\.)*\w*(?:Error|Exception)\b")
_AFTER = ("ERROR :", "INFO :", "WARNING :", "The above exception was", "During handling of")
# Flower says these in every run (all but the first two in failed ones), and they help nobody.
_NOISE = re.compile(
    r"default simulated SuperNodes|Manually terminating ClientAppActor|Simulation raised an exception|Exit Code: \d+$"
    r"|^RuntimeError: (Simulation Runtime crashed|An error was encountered)\."
)


def simulate(
    config: RunConfig,
    overrides: Sequence[str],
    *,
    console: Console | None = None,
    verbose: bool = False,
    superlink: SuperLink | None = None,
) -> dict[str, Any]:
    """Run a configuration on Flower's simulation runtime and return the content of the run's `summary.json`.

    Raises FederationError if the run fails, with the end of its log, StoreError if its files cannot be used. Whatever
    happens, also a Ctrl-C or a SIGTERM, every process that was started is ended and every temporary file removed.

    Args:
        config: The composed configuration.
        overrides: The overrides that it was composed from; the app composes it again.
        console: Where progress is shown (default: standard error).
        verbose: Show the whole log of the run, and not only its warnings; it is in the run folder in any case.
        superlink: One that was started already; whoever started it ends it (None: one is started for this run).
    """
    console = console or Console(stderr=True)
    require(config.simulation)
    config = settle(config, working_directory())
    run_id = config.resume or config.run_id or new_run_id(config)
    config = dataclasses.replace(config, run_id=run_id)
    assert config.runs_dir is not None
    folder = _resumed_folder(config) if config.resume else RunFolder.new(config.runs_dir / run_id).path
    same = [text for text in portable(overrides, config) if key_of(text) != "run_id"]
    with (
        signals_as_exceptions(),
        RunProgress(console) as progress,
        (folder / LOG).open("a", encoding="utf-8") as log,
    ):
        if address := cluster():
            progress.note(f"on the Ray cluster {address}: its size decides the number of workers")
        progress.stage("starting Flower")
        with nullcontext(superlink) if superlink else SuperLink() as link:
            link.wait()
            run = _submit(link, config.simulation, [*same, assign("run_id", run_id)])
            progress.stage(f"run {run_id}: reading the data and starting the workers")
            tail = _follow(link, run, folder, config, log, progress, verbose)
            _require_success(link, run, folder, tail)
        return evaluated(config, _summary(folder), progress.stage)


def carry_on(chosen: Candidate, console: Console, *, verbose: bool) -> dict[str, Any]:
    """Carry a run that `fedrec tune` has chosen, of which a part may be done, to its end on Flower's runtime.

    Raises as `simulate` does.
    """
    if not chosen.round:
        return simulate(chosen.config, chosen.typed, console=console, verbose=verbose)
    config = dataclasses.replace(chosen.config, resume=chosen.config.run_id)
    same = [assign(key, value) for key in PLACES if (value := getattr(config, key)) is not None]
    return simulate(config, same, console=console, verbose=verbose)


def _resumed_folder(config: RunConfig) -> Path:
    """The folder of the run that goes on, its metrics cut already, so that what is followed only grows."""
    assert config.runs_dir is not None
    assert config.resume is not None
    folder = RunFolder.reopened(config.runs_dir / config.resume)
    with folder.locked():
        prepare(folder)
    return folder.path


def _submit(superlink: SuperLink, simulation: SimulationConfig, overrides: Sequence[str]) -> str:
    """Hand the app and its configuration to the SuperLink; returns Flower's number of the run."""
    app = assemble(superlink.base / "fedrec")
    values = superlink.base / "run-config.toml"
    values.write_text(run_config(overrides), encoding="utf-8")
    answer = superlink.call(
        "run", str(app), NAME, "--run-config", str(values), "--federation-config", federation_config(simulation)
    )
    return str(answer["run-id"])


def _follow(
    superlink: SuperLink, run: str, folder: Path, config: RunConfig, log: TextIO, progress: RunProgress, verbose: bool
) -> list[str]:
    """Show rounds and log until the run has ended; returns the last lines of the log.

    Raises a FederationError for what Flower would wait on in vain: resources that nobody has, or a run that has failed
    while Ray is still being looked for.
    """
    stream = superlink.stream(run)
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    reader = threading.Thread(target=_read, args=(stream, lines), daemon=True)
    reader.start()
    metrics = Tail(folder / METRICS, from_now=config.resume is not None)
    tail: list[str] = []
    looked = 0.0
    failed: tuple[float, str] | None = None
    while True:
        ended = not reader.is_alive()
        for record in metrics.records():
            progress.update(record)
        while not lines.empty():
            line = _COLOURS.sub("", lines.get())
            log.write(line + "\n")
            tail = [*tail[-_TAIL:], line]
            if problem := explain(line, config.simulation):
                raise FederationError(problem)
            if line.startswith(_FAILED):
                failed = (time.monotonic(), line.removeprefix(_FAILED))
            if verbose or (_WORTH_SHOWING.match(line) and not _NOISE.search(line)):
                progress.note(line.removeprefix("INFO "))
        log.flush()
        if ended:
            return tail
        if failed is not None and time.monotonic() - failed[0] > _GRACE:
            raise FederationError(f"the run has failed: {failed[1]}\nits whole log is {folder / LOG}")
        superlink.check()
        if time.monotonic() - looked > _LOOK:
            superlink.offspring.look()
            looked = time.monotonic()
        reader.join(_POLL)


def _read(stream: subprocess.Popen[str], lines: queue.SimpleQueue[str]) -> None:
    assert stream.stdout is not None
    with suppress(ValueError):  # closed while we end everything
        for line in stream.stdout:
            lines.put(line.rstrip("\n"))


class Tail:
    """The records of a growing file of JSON lines, each once; `from_now`: without those that are there already."""

    def __init__(self, path: Path, *, from_now: bool = False) -> None:
        self._path = path
        self._offset = path.stat().st_size if from_now and path.exists() else 0

    def records(self) -> Iterator[dict[str, Any]]:
        """What whole lines have come since the last call."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            text = file.read()
        whole, newline, _ = text.rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        for line in whole.splitlines():
            with reading(str(self._path), "see the log of the run"):
                record = parsed_object(line)
            if "round" in record and "rounds" in record:
                yield record


def _require_success(superlink: SuperLink, run: str, folder: Path, tail: list[str]) -> None:
    """Raise a FederationError unless Flower says that the run was completed."""
    while not (status := _status(superlink, run)).startswith("finished"):
        superlink.check()
        time.sleep(1.0)
    if status != "finished:completed":
        raise FederationError(
            f"the run ended as {status!r}, expected 'finished:completed': {reason(tail) or superlink.tail()}\n"
            f"its whole log is {folder / LOG}"
        )


def reason(tail: Sequence[str]) -> str:
    """Why a run failed, from the last lines of its log: the last exception's message, or else all the lines."""
    lines = [line for line in tail if line.strip() and not _NOISE.search(line)]
    starts = [index for index, line in enumerate(lines) if _REASON.match(line)]
    if starts:
        after = lines[starts[-1] :]
        ends = [index for index, line in enumerate(after) if line.startswith(_AFTER)]
        lines = after[: ends[0]] if ends else after
    return "\n".join(lines)


def _status(superlink: SuperLink, run: str) -> str:
    runs = superlink.call("ls", NAME, "--run-id", run)["runs"]
    return str(runs[0]["status"])


def _summary(folder: Path) -> dict[str, Any]:
    path = folder / SUMMARY
    with reading(f"the run ended as completed, but {path}", f"see {folder / LOG}"):
        return parsed_object(path.read_text(encoding="utf-8"))
