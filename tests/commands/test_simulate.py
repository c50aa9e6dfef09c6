"""How a simulation is followed and judged, with a stand-in for the SuperLink."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import pytest
from rich.console import Console

from commands import simulate as module
from commands.signals import signals_as_exceptions
from commands.simulate import LOG, Tail, reason, simulate
from commands.superlink import environment
from fedrec.config.compose import compose
from fedrec.core.errors import FederationError, StoreError

RUN = ["run_id=one", "simulation.nodes=3", "simulation.workers=2"]
FAILED_LOG = """\
INFO :      Starting Flower Simulation
ERROR :     Simulation raised an exception
Traceback (most recent call last):
  File "app.py", line 1, in main
fedrec.core.errors.DataError: ratings.dat: line 7 has 3 fields, expected 4
  mend the line
ERROR :     Exit Code: 700

An unhandled exception occurred when running the simulation.
"""


class StandIn:
    """A SuperLink that has run already: what its log says, how it ended, what the app wrote."""

    log = "INFO reading synthetic\nINFO round 1/1 warmup\nWARNING one item has no text\nINFO :      chatter\n"
    status = "finished:completed"
    files: dict[str, str] = {}  # noqa: RUF012
    calls: list[tuple[str, ...]] = []  # noqa: RUF012
    folder = Path()

    def __init__(self) -> None:
        self.base = self.folder / "base"
        self.base.mkdir(parents=True)
        self.offspring = self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.calls.append(("closed",))

    def look(self) -> None: ...

    def wait(self) -> None: ...

    def check(self) -> None: ...

    def call(self, *arguments: str) -> dict[str, Any]:
        self.calls.append(arguments)
        return {"run-id": "42", "runs": [{"status": self.status}]}

    def stream(self, run_id: str) -> subprocess.Popen[str]:
        for name, text in self.files.items():
            (self.folder / "runs" / "one" / name).write_text(text)
        script = f"print({self.log!r}, end='')"
        return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    line = {"round": 1, "rounds": 1, "phase": "warmup", "loss": 0.5, "seconds": 1.0}
    files = {"metrics.jsonl": json.dumps(line) + "\n", "summary.json": '{"rounds": 1}'}
    made = type("Made", (StandIn,), {"folder": tmp_path, "calls": [], "files": files})
    monkeypatch.setattr(module, "SuperLink", made)
    monkeypatch.chdir(tmp_path)
    return made


def started(*overrides: str, **more: Any) -> tuple[dict[str, Any], str]:
    out = io.StringIO()
    words = [*RUN, *overrides]
    summary = simulate(compose(words, base=Path.cwd()), words, console=Console(file=out, width=200), **more)
    return summary, out.getvalue()


def test_a_run_returns_its_summary_and_shows_rounds_and_warnings(stand_in: type[StandIn], tmp_path: Path) -> None:
    summary, out = started()
    assert summary == {"rounds": 1}
    lines = out.splitlines()
    assert lines[:2] == ["starting Flower", "run one: reading the data and starting the workers"]
    assert sorted(lines[2:]) == [
        "WARNING one item has no text",
        "reading synthetic",
        "round 1/1 warmup  loss 0.5000",
    ]
    assert (tmp_path / "runs" / "one" / LOG).read_text() == stand_in.log


def test_verbose_shows_everything(stand_in: type[StandIn]) -> None:
    assert "chatter" in started(verbose=True)[1]


def test_the_run_gets_absolute_paths_its_name_and_its_resources(stand_in: type[StandIn], tmp_path: Path) -> None:
    started("runs_dir=runs")
    words = stand_in.calls[0]
    assert words[0] == "run"
    assert words[words.index("--federation-config") + 1] == (
        "num-supernodes=3 client-resources-num-cpus=1 init-args-num-cpus=2"
    )
    values = Path(words[words.index("--run-config") + 1]).read_text()
    assert f"runs_dir={tmp_path / 'runs'}" in values
    assert values.count("run_id=one") == 1


def test_a_failed_run_is_an_error_with_its_reason(stand_in: type[StandIn], tmp_path: Path) -> None:
    stand_in.status, stand_in.log = "finished:failed", FAILED_LOG
    with pytest.raises(FederationError) as caught:
        started()
    text = str(caught.value)
    assert "'finished:failed', expected 'finished:completed'" in text
    assert "line 7 has 3 fields, expected 4\n  mend the line\n" in text
    assert "Traceback" not in text
    assert str(tmp_path / "runs" / "one" / LOG) in text
    assert stand_in.calls[-1] == ("closed",)


@pytest.mark.parametrize("content", [None, "{", "[1]"])
def test_a_run_without_a_summary_is_an_error(stand_in: type[StandIn], content: str | None) -> None:
    stand_in.files = {} if content is None else {"summary.json": content}
    with pytest.raises(StoreError, match=r"the run ended as completed, but .*summary\.json is (missing|damaged)"):
        started()


def test_a_folder_that_holds_a_run_is_refused_before_anything_starts(stand_in: type[StandIn]) -> None:
    started()
    stand_in.calls.clear()
    with pytest.raises(StoreError, match="already holds a run"):
        started()
    assert stand_in.calls == []


def test_a_sigterm_unwinds_and_closes(stand_in: type[StandIn], monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(stand_in, "check", lambda self: os.kill(os.getpid(), signal.SIGTERM))
    stand_in.log = "x" * 10
    monkeypatch.setattr(
        stand_in,
        "stream",
        lambda self, run: subprocess.Popen(["sleep", "1"], stdout=subprocess.PIPE, text=True),
    )
    with pytest.raises(SystemExit) as caught:
        started()
    assert caught.value.code == 128 + signal.SIGTERM
    assert stand_in.calls[-1] == ("closed",)
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_reason_of_a_log_without_an_exception_is_the_log() -> None:
    assert reason(["one", "", "WARNING :   Manually terminating ClientAppActor", "two"]) == "one\ntwo"


def test_half_a_line_waits_for_its_rest(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert list(tail.records()) == []
    path.write_text('{"round": 1, "rounds": 2}\n{"round": 2, "ro')
    assert [each["round"] for each in tail.records()] == [1]
    assert list(tail.records()) == []
    with path.open("a") as file:
        file.write('unds": 2}\n')
    assert [each["round"] for each in tail.records()] == [2]


EMPTY_POOL = """\
WARNING :   The ActorPool is empty. The system (CPUs=2.0, GPUs=0) does not meet the criteria to host at least one client
Traceback (most recent call last):
ValueError: ActorPool is empty. Stopping Simulation.

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "vce_api.py", line 267, in run_api
RuntimeError: Simulation Runtime crashed.

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
RuntimeError: An error was encountered. Ending simulation.
ERROR :     Exit Code: 700

An unhandled exception occurred when running the simulation.
"""


def test_the_reason_is_the_exception_that_flowers_own_were_raised_from() -> None:
    assert reason(EMPTY_POOL.splitlines()) == "ValueError: ActorPool is empty. Stopping Simulation."


def test_resources_that_nobody_has_end_the_run_with_what_to_change(stand_in: type[StandIn]) -> None:
    stand_in.log = EMPTY_POOL
    with pytest.raises(FederationError, match=r"room for one worker .*cpus_per_worker=1 .*CPUs=2\.0, GPUs=0"):
        started()
    assert stand_in.calls[-1] == ("closed",)


def test_a_run_that_failed_while_flower_goes_on_is_ended(
    stand_in: type[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "import time; print('ERROR the run has failed: DataError: no users', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", script]
    stream = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    monkeypatch.setattr(stand_in, "stream", lambda self, run: stream)
    monkeypatch.setattr(module, "_GRACE", 0.0)
    try:
        with pytest.raises(FederationError, match="the run has failed: DataError: no users\n"):
            started()
    finally:
        stream.kill()
        stream.communicate()
    assert stand_in.calls[-1] == ("closed",)


def test_a_cluster_that_does_not_answer_is_found_out_before_anything_starts(
    stand_in: type[StandIn], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(FederationError, match=r"RAY_ADDRESS=127\.0\.0\.1:1: no Ray cluster answers there"):
        started()
    assert stand_in.calls == []
    assert not (tmp_path / "runs").exists()


def test_the_environment_is_private(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLWR_HOME", "/someone/else")
    monkeypatch.setenv("FLWR_DATABASE", "/someone/else.db")
    monkeypatch.setenv("NO_PROXY", "example.org")
    env = environment(tmp_path)
    assert env["FLWR_HOME"] == str(tmp_path / "home")
    assert "FLWR_DATABASE" not in env
    assert env["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert env["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] == "1", "workers without a GPU of their own see none"
    assert env["NO_PROXY"] == "example.org,127.0.0.1,localhost"


def test_signals_are_taken_once_and_given_back() -> None:
    watched = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(each) for each in watched]
    after_the_first: list[Any] = []

    def ended_twice() -> None:
        with signals_as_exceptions(), signals_as_exceptions():
            try:
                os.kill(os.getpid(), signal.SIGHUP)
            finally:
                after_the_first.extend(signal.getsignal(each) for each in watched)
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as caught:
        ended_twice()
    assert caught.value.code == 128 + signal.SIGHUP
    assert after_the_first == [signal.SIG_IGN] * 3
    assert [signal.getsignal(each) for each in watched] == before
