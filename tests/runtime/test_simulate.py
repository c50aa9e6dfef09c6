"""`fedrec simulate` for real: Flower's SuperLink, Ray's workers, the apps as a bundle, and nothing left afterwards."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import commands
from commands.processes import running

ROOT = str(Path(commands.__file__).resolve().parent.parent)
TINY = [
    "dataset.n_users=40",
    "dataset.n_items=60",
    "dataset.interactions_per_user=8",
    "strategy.rounds=3",
    "strategy.warmup_rounds=1",
    "strategy.fraction=0.5",
    "base_table.dim=8",
    "evaluation.every=2",
    "run_id=tiny",
]


def simulate(cwd: Path, *overrides: str) -> subprocess.Popen[str]:
    """`fedrec simulate` in an empty directory, with a mark in its environment that all it starts inherits."""
    empty = cwd / "empty"
    empty.mkdir()
    env = {**os.environ, "PYTHONPATH": ROOT, "FEDREC_HOME": str(cwd / "home"), "FEDREC_TEST": str(cwd)}
    given = {override.partition("=")[0]: override for override in [*TINY, *overrides]}
    command = [sys.executable, "-m", "commands.cli", "simulate", "--json", *given.values()]
    return subprocess.Popen(command, cwd=empty, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def remains(cwd: Path) -> list[str]:
    """Processes that still carry the mark in their environment, and the private folder if it still exists."""
    mark = f"FEDREC_TEST={cwd}".encode()
    found = []
    for process in running():
        try:
            marked = mark in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if marked:
            found.append(Path(f"/proc/{process.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode())
    log = (cwd / "empty" / "runs" / "tiny" / "flower.log").read_text()
    private = re.search(r"installed fedrec to (\S+?/fedrec-\w+)/home", log)
    assert private is not None
    return [*found, *([private[1]] if Path(private[1]).exists() else [])]


def finished(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any], str]:
    try:
        out, err = process.communicate(timeout=900)
    except subprocess.TimeoutExpired:
        process.terminate()  # it ends all that it has started
        process.communicate()
        raise
    lines = out.splitlines()
    return process.returncode, json.loads(lines[-1]) if lines else {}, err


def test_a_simulation_from_an_empty_directory_to_its_summary(tmp_path: Path) -> None:
    status, end, err = finished(simulate(tmp_path))
    assert status == 0, err
    folder = tmp_path / "empty" / "runs" / "tiny"
    assert end["run"] == str(folder)
    assert end["rounds"] == 3
    assert 0 <= end["test"]["ndcg@10"] <= 1
    assert end["bytes_per_user"]["total"] > 0
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(each["round"], each["phase"]) for each in records] == [(1, "warmup"), (2, "peft"), (3, "peft")]
    assert {"config.yaml", "manifest.json", "log.txt", "summary.json", "flower.log"} <= {
        path.name for path in folder.iterdir()
    }
    assert "round 3/3" in err
    assert remains(tmp_path) == []
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["runs"]


@pytest.mark.runtime
def test_a_run_that_fails_in_the_app_exits_with_an_error(tmp_path: Path) -> None:
    # The folder of the cache is a file: only the running app finds out.
    (tmp_path / "file").write_text("")
    status, end, err = finished(simulate(tmp_path, f"cache_dir={tmp_path / 'file' / 'cache'}"))
    assert status == 1
    assert "finished:failed" in end["error"]
    assert "finished:failed" in err
    assert remains(tmp_path) == []


@pytest.mark.runtime
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_in_the_middle_leaves_nothing(tmp_path: Path, signum: signal.Signals) -> None:
    process = simulate(tmp_path, "strategy.rounds=5000")
    log = tmp_path / "empty" / "runs" / "tiny" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not log.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signum)
    process.communicate(timeout=900)
    assert process.returncode != 0
    deadline = time.monotonic() + 30
    while remains(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert remains(tmp_path) == []
