"""A disk that is full, a home that is locked: said with the mend, one line of JSON, and nothing good is lost."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHOP = ["dataset.n_users=200", "dataset.n_items=400", "dataset.interactions_per_user=8"]
TRAIN = ["train", *SHOP, "strategy.rounds=3", "strategy.warmup_rounds=2", "checkpoint_every=1", "evaluation.every=0"]
BASELINE = ["baseline", "central", *SHOP, "central.epochs=2"]


def fedrec(place: Path, *typed: str, largest: int | None = None) -> tuple[int, dict[str, Any]]:
    """Status and line of a command that may write no larger file than that."""

    def limit() -> None:
        if largest is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))

    env = {**os.environ, "PYTHONPATH": str(ROOT), "FEDREC_HOME": str(place / "home"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "commands.cli", *typed, "--json"]
    done = subprocess.run(
        command, cwd=place, env=env, preexec_fn=limit, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stdout.count("\n") == 1
    return done.returncode, json.loads(done.stdout)


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder whose cache is there already, and what a run in it comes to."""
    place = tmp_path_factory.mktemp("warm")
    status, summary = fedrec(place, *TRAIN, "run_id=whole")
    assert status == 0
    return place, summary


@pytest.mark.parametrize("largest", [500, 5_000, 40_000, 70_000, 90_000])
def test_a_full_disk_is_said_and_the_run_goes_on_when_there_is_room(
    warm: tuple[Path, dict[str, Any]], largest: int
) -> None:
    place, whole = warm
    status, line = fedrec(place, *TRAIN, f"run_id=full-{largest}", largest=largest)
    assert status == 1
    assert "make room on that disk" in line["error"] or "database or disk is full" in line["error"]
    if largest <= 5_000:  # not even the configuration, or the first files, of the run are there
        assert ("resume" in line["error"]) == (place / f"runs/full-{largest}/config.yaml").exists()
        return
    assert f"resume=full-{largest}" in line["error"] or "database" in line["error"]
    status, summary = fedrec(place, "train", f"resume=full-{largest}")
    assert status == 0, summary
    assert summary["test"] == whole["test"]


def test_a_full_disk_at_a_baseline_promises_no_resumption(warm: tuple[Path, dict[str, Any]]) -> None:
    place, _ = warm
    status, line = fedrec(place, *BASELINE, "run_id=b", largest=600)
    assert status == 1
    assert "make room on that disk, or start another run with runs_dir=/another/folder" in line["error"]
    assert "resume" not in line["error"]


def test_a_cache_that_may_not_be_looked_into_is_named(tmp_path: Path) -> None:
    """Whoever runs the tests as root may look into everything: there the folder is a file."""
    locked = tmp_path / "locked"
    locked.write_text("")
    status, line = fedrec(tmp_path, *TRAIN, f"cache_dir={locked}/cache")
    assert status == 1
    assert f"cache_dir={locked}/cache" in line["error"]
    assert "set cache_dir to a folder that may be read and written" in line["error"]
