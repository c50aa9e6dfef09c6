"""What is told when Flower's own command does not answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import superlink
from commands.processes import running
from commands.superlink import SuperLink
from fedrec.core.errors import FederationError


@pytest.fixture
def link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SuperLink]:
    """One that was never started; in the place of Flower's commands is a file that each test writes."""
    made = SuperLink()
    made._cwd.mkdir()
    monkeypatch.setattr(made, "_script", lambda name: str(tmp_path / name))
    yield made
    made.close()


def write(tmp_path: Path, text: str) -> None:
    (tmp_path / "flwr").write_text(f"#!/bin/sh\n{text}\n")
    (tmp_path / "flwr").chmod(0o700)


def test_a_call_without_an_answer_is_ended_and_said(
    link: SuperLink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(superlink, "_CALL_TIMEOUT", 0.5)
    write(tmp_path, "sleep 600 & echo started; sleep 600")  # its child holds its streams open, too
    link._log.write_text("the last words of the SuperLink")
    before = time.monotonic()
    with pytest.raises(
        FederationError, match=r"(?s)`flwr run` had no answer .* on 127.0.0.1:0 .*start again:\nthe last words"
    ):
        link.call("run", "/the/app")
    assert time.monotonic() - before < 30
    started = {process.pid for process in link.offspring._started}
    while left := [process for process in running() if process.group in started]:  # a grandchild takes a moment to die
        assert time.monotonic() - before < 30, f"{left} go on"
        time.sleep(0.05)


def test_an_answer_is_returned_and_a_failure_is_told(link: SuperLink, tmp_path: Path) -> None:
    write(tmp_path, """echo 'a line before {"success": true, "run-id": "7"}'""")
    assert link.call("run")["run-id"] == "7"
    write(tmp_path, """echo '{"success": false, "error-message": "no such run"}'; exit 1""")
    with pytest.raises(FederationError, match="`flwr stop` failed with exit status 1: no such run"):
        link.call("stop", "7")
