"""`fedrec simulate` for real: Flower's SuperLink, Ray's workers, the apps as a bundle, and nothing left afterwards."""

from __future__ import annotations

import signal
import time
from typing import Any

import pytest


def test_a_simulation_from_an_empty_directory_to_its_summary(place: Any) -> None:
    status, end, err = place.finished(place.start())
    assert status == 0, err
    assert end["run"] == str(place.folder())
    assert end["rounds"] == 3
    assert 0 <= end["test"]["ndcg@10"] <= 1
    assert end["bytes_per_user"]["total"] > 0
    assert [(each["round"], each["phase"]) for each in place.metrics()] == [(1, "warmup"), (2, "peft"), (3, "peft")]
    assert {"config.yaml", "manifest.json", "log.txt", "summary.json", "flower.log"} <= {
        path.name for path in place.folder().iterdir()
    }
    assert "round 3/3" in err
    assert place.remains() == []
    assert [path.name for path in (place.path / "empty").iterdir()] == ["runs"]


@pytest.mark.runtime
def test_a_run_that_fails_in_the_app_exits_with_an_error(place: Any) -> None:
    # The folder of the cache is a file: only the running app finds out.
    (place.path / "file").write_text("")
    status, end, err = place.finished(place.start(f"cache_dir={place.path / 'file' / 'cache'}"))
    assert status == 1
    assert "finished:failed" in end["error"]
    assert "finished:failed" in err
    assert place.remains() == []


@pytest.mark.runtime
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_in_the_middle_leaves_nothing(place: Any, signum: signal.Signals) -> None:
    process = place.start("strategy.rounds=5000")
    log = place.folder() / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not log.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signum)
    process.communicate(timeout=900)
    assert process.returncode != 0
    deadline = time.monotonic() + 30
    while place.remains() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert place.remains() == []


@pytest.mark.runtime
def test_a_recipe_that_is_chosen_here_is_carried_to_its_end_on_the_runtime_as_train_does(place: Any) -> None:
    shop = ["dataset.n_users=40", "dataset.n_items=60", "dataset.interactions_per_user=8"]
    found = {}
    for command, name in (("simulate", "tiny"), ("train", "other")):
        process = place.start(*shop, f"run_id={name}", command=command, only=True)
        status, end, err = place.finished(process)
        assert status == 0, err
        assert end["tune"]["command"].startswith(f"fedrec {command} experiment=")
        found[command] = (end["test"], end["tune"]["experiment"], end["bytes_per_user"])
    assert found["simulate"] == found["train"]
    assert place.remains() == []
