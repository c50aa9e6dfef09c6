"""A run that was interrupted and goes on ends as if nothing had happened: on real data, to the bit."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from client_app.answers.app import app as client_app
from commands.local_grid import LocalGrid
from federation.base import FederatedStrategy
from fedrec.config.compose import compose
from fedrec.config.paths import settle
from fedrec.core.errors import ConfigError, DataError, FederationError, StoreError
from fedrec.core.registry import CONF
from server_app import run as server_run
from server_app.run import run

ROUNDS = 6
SMALL = [
    "dataset=ml_100k",
    "base_table.dim=8",
    f"strategy.rounds={ROUNDS}",
    "federation.fraction=0.3",
    "evaluation.every=1",
    "evaluation.baselines=false",
    "checkpoint_every=2",
    "run_id=r",
]
KEYS = {
    "full": [],
    "lora": ["embedding.rank=2"],
    "hash": ["embedding.buckets=64"],
    "hash_senet": ["embedding.buckets=64"],
    "rqvae": ["embedding.levels=2", "embedding.codes=16", "embedding.steps=20"],
}


class Killed(BaseException):
    """The process ends here."""


class Mortal(LocalGrid):
    """Is killed before it delivers a message."""

    def __init__(self, deliveries: int) -> None:
        super().__init__(client_app, nodes=2)
        self._left = deliveries

    def push_messages(self, messages: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise Killed
        return super().push_messages(messages)


@pytest.fixture(scope="session")
def few_users(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MovieLens 100K with its first sixteen users."""
    folder = tmp_path_factory.mktemp("few") / "ml-100k"
    folder.mkdir()
    shutil.copyfile(real / "ml-100k" / "u.item", folder / "u.item")
    lines = (real / "ml-100k" / "u.data").read_text().splitlines(keepends=True)
    (folder / "u.data").write_text("".join(line for line in lines if int(line.split("\t")[0]) <= 16))
    return folder


Carry = Callable[..., dict[str, Any] | None]


@pytest.fixture(scope="session")
def carry(few_users: Path, tmp_path_factory: pytest.TempPathFactory) -> Carry:
    """Carry a run out below `place`, or as many deliveries of it; its summary, or None if it was killed."""
    cache = tmp_path_factory.mktemp("cache")

    def go(place: Path, *overrides: str, deliveries: int = 10**9, resume: bool = False) -> dict[str, Any] | None:
        where = [f"runs_dir={place}", f"cache_dir={cache}"]
        given = {text.partition("=")[0]: text for text in [*SMALL, f"dataset.root={few_users}", *overrides]}
        solve = "optim.solve_steps=2" if "optim=fast" in overrides else "optim.solve_epochs=2"
        texts = ["resume=r", *where] if resume else [*given.values(), solve, *where]
        try:
            return run(settle(compose(texts, base=None), None), texts, Mortal(deliveries))
        except Killed:
            return None

    return go


def result(place: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """All that a run has come to, without the times and the place."""
    lines = [json.loads(line) for line in (place / "r/metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["seconds"]
    return {
        "metrics": lines,
        "summary": {key: value for key, value in summary.items() if key not in ("seconds", "training_seconds", "run")},
        "checkpoint": load_file(place / f"r/checkpoints/round-{ROUNDS:06d}.safetensors"),
    }


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["metrics"] == expected["metrics"]
    assert found["summary"] == expected["summary"]
    assert found["checkpoint"].keys() == expected["checkpoint"].keys()
    for name, tensor in expected["checkpoint"].items():
        assert torch.equal(found["checkpoint"][name], tensor), name


@pytest.fixture(scope="session")
def uninterrupted(carry: Carry, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """The result of a run that nothing has interrupted."""
    known: dict[tuple[str, ...], dict[str, Any]] = {}

    def of(*overrides: str) -> dict[str, Any]:
        if overrides not in known:
            place = tmp_path_factory.mktemp("whole")
            summary = carry(place, *overrides)
            assert summary is not None
            known[overrides] = result(place, summary)
        return known[overrides]

    return of


@pytest.fixture
def places(tmp_path: Path) -> Iterator[Path]:
    """A new folder each time, also for the examples of one test."""
    return (tmp_path / str(number) for number in range(10**6))


@given(st.lists(st.integers(0, 2 * ROUNDS), min_size=1, max_size=3), st.sampled_from([1, 2, 3]))
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whenever_it_is_killed_and_however_often(
    carry: Carry, uninterrupted: Callable[..., Any], places: Iterator[Path], deaths: list[int], every: int
) -> None:
    overrides = ("optim=fast", *KEYS["lora"], "strategy.warmup_rounds=3", f"checkpoint_every={every}")
    place = next(places)
    summary = carry(place, *overrides, deliveries=deaths[0])
    for deliveries in deaths[1:]:
        summary = summary or carry(place, resume=True, deliveries=deliveries)
    summary = summary or carry(place, resume=True)
    assert summary is not None
    assert_same(result(place, summary), uninterrupted(*overrides))


@pytest.mark.parametrize(("embedding", "optim"), [("lora", "paper"), *((name, "fast") for name in KEYS)])
def test_every_embedding_and_recipe(
    carry: Carry, uninterrupted: Callable[..., Any], tmp_path: Path, embedding: str, optim: str
) -> None:
    """Killed after a checkpoint in the middle of the last phase, with a server optimiser that remembers."""
    strategy = ["strategy=full"] if embedding == "full" else [f"embedding={embedding}", "strategy.warmup_rounds=2"]
    overrides = (*strategy, f"optim={optim}", *KEYS[embedding])
    assert carry(tmp_path, *overrides, deliveries=8) is None
    assert any((tmp_path / "r/checkpoints").glob("*.json"))
    summary = carry(tmp_path, resume=True)
    assert summary is not None
    assert_same(result(tmp_path, summary), uninterrupted(*overrides))


def test_counted_items_are_not_asked_for_again(carry: Carry, uninterrupted: Callable[..., Any], tmp_path: Path) -> None:
    overrides = ("backbone=fedpergnn", *KEYS["lora"], "strategy.warmup_rounds=3")
    assert carry(tmp_path, *overrides, deliveries=6) is None
    summary = carry(tmp_path, resume=True)
    assert summary is not None
    assert_same(result(tmp_path, summary), uninterrupted(*overrides))


@pytest.mark.parametrize("uplink", ["sparse", "actions", "sampled"])
def test_the_bytes_of_what_users_changed_and_simulated_time_are_counted_on(
    carry: Carry, uninterrupted: Callable[..., Any], tmp_path: Path, uplink: str
) -> None:
    overrides = (
        "strategy=full",
        "codec=int8",
        "optim=fast",
        f"uplink={uplink}",
        "network=mobile",
        "network.availability=0.7",
    )
    assert carry(tmp_path, *overrides, deliveries=8) is None
    summary = carry(tmp_path, resume=True)
    assert summary is not None
    assert summary["simulated_seconds"] > ROUNDS * 0.1
    assert_same(result(tmp_path, summary), uninterrupted(*overrides))


MERGES = {
    "merges": ([*KEYS["lora"], "strategy.warmup_rounds=1", "strategy.merge_every=1"], ROUNDS - 2),
    "merges in int8": ([*KEYS["lora"], "strategy.warmup_rounds=1", "strategy.merge_every=1", "codec=int8"], ROUNDS - 2),
    "steps": (["strategy=full", "downlink=actions", "downlink.actions=8", "codec=int8"], ROUNDS),
}


@pytest.mark.parametrize("name", MERGES)
def test_merges_and_steps_go_on_where_they_were(
    carry: Carry, uninterrupted: Callable[..., Any], tmp_path: Path, name: str
) -> None:
    chosen, merges = MERGES[name]
    overrides = ("optim=fast", *chosen)
    assert carry(tmp_path, *overrides, deliveries=7) is None
    summary = carry(tmp_path, resume=True)
    assert summary is not None
    assert summary["merges"] == merges
    assert_same(result(tmp_path, summary), uninterrupted(*overrides))


BASIC = (*KEYS["lora"], "strategy.warmup_rounds=3")


def test_a_trained_model_outlives_a_ranking_that_fails(
    carry: Carry, uninterrupted: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left to train: the run that goes on asks for the last ranking alone, and ends like any other."""

    overrides = (*BASIC, "checkpoint_every=0", "checkpoints_kept=1", "evaluation.every=0")

    def fail(*_: object, **__: object) -> None:
        raise FederationError("no user could be ranked")

    with monkeypatch.context() as patch:
        patch.setattr(FederatedStrategy, "_ranked", fail)
        with pytest.raises(FederationError, match="no user could be ranked"):
            carry(tmp_path, *overrides)
    lines = (tmp_path / "r/metrics.jsonl").read_text().splitlines()
    assert len(lines) == ROUNDS - 1, "the line of the last round waits for its ranking"
    assert [path.name for path in (tmp_path / "r/checkpoints").glob("*.json")] == [f"round-{ROUNDS:06d}.json"]
    assert carry(tmp_path, resume=True, deliveries=1) is None, "killed before the ranking once more"
    summary = carry(tmp_path, resume=True, deliveries=2)  # the users join again, and are ranked
    assert summary is not None
    assert_same(result(tmp_path, summary), uninterrupted(*overrides))


@pytest.mark.parametrize("after", ["write_curve", "finite"])
def test_a_trained_model_outlives_a_report_that_fails(
    carry: Carry, uninterrupted: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    whole = server_run.finite

    def full(values: Any) -> Any:
        if after == "finite" and "test" not in values:  # a round's record, and not the summary
            return whole(values)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(server_run, after, full)
        with pytest.raises((StoreError, OSError), match="No space left"):
            carry(tmp_path, *BASIC)
    assert not (tmp_path / "r/summary.json").exists()
    summary = carry(tmp_path, resume=True, deliveries=2)
    assert summary is not None
    assert_same(result(tmp_path, summary), uninterrupted(*BASIC))


def test_a_line_of_metrics_that_breaks_off_is_cut_away(
    carry: Carry, uninterrupted: Callable[..., Any], tmp_path: Path
) -> None:
    """As a server leaves it that was killed in the middle of a line, or whose disk was full."""
    assert carry(tmp_path, *BASIC, deliveries=9) is None
    path = tmp_path / "r/metrics.jsonl"
    with path.open("ab") as file:
        file.write(b'{"round": 6, "phase": "pe\xff')
    summary = carry(tmp_path, resume=True)
    assert summary is not None
    assert_same(result(tmp_path, summary), uninterrupted(*BASIC))


@pytest.mark.parametrize("damage", ["truncated", "json"])
def test_a_damaged_checkpoint_is_passed_over_and_the_one_before_it_used(
    carry: Carry, uninterrupted: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    assert carry(tmp_path, *BASIC, deliveries=9) is None
    folder = tmp_path / "r/checkpoints"
    assert sorted(path.name for path in folder.glob("*.json")) == ["round-000002.json", "round-000004.json"]
    path = folder / "round-000004.safetensors"
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[:-5])
    else:
        path.with_suffix(".json").write_text("{")
    with caplog.at_level(logging.INFO, logger="fedrec"):
        summary = carry(tmp_path, resume=True)
    assert summary is not None
    assert "checkpoint round-000004 is damaged and is passed over" in caplog.text
    assert "the run goes on after round 2" in caplog.text
    assert_same(result(tmp_path, summary), uninterrupted(*BASIC))


def test_a_run_with_nothing_but_damaged_checkpoints_does_not_begin_anew(carry: Carry, tmp_path: Path) -> None:
    assert carry(tmp_path, *BASIC, deliveries=10) is None
    for path in (tmp_path / "r/checkpoints").glob("*.safetensors"):
        path.write_bytes(b"")
    before = (tmp_path / "r/metrics.jsonl").read_bytes()
    with pytest.raises(StoreError, match=r"every checkpoint in .* is damaged"):
        carry(tmp_path, resume=True)
    assert (tmp_path / "r/metrics.jsonl").read_bytes() == before


def test_what_is_cut_is_kept_aside_and_the_manifest_says_when(carry: Carry, tmp_path: Path) -> None:
    assert carry(tmp_path, *BASIC, deliveries=7) is None
    lines = (tmp_path / "r/metrics.jsonl").read_text().splitlines()
    assert len(lines) > 2
    assert carry(tmp_path, resume=True, deliveries=0) is None
    assert (tmp_path / "r/metrics.jsonl").read_text().splitlines() == lines[:2]
    assert (tmp_path / "r/cut-1.jsonl").read_text().splitlines() == lines[2:]
    assert carry(tmp_path, resume=True) is not None
    manifest = json.loads((tmp_path / "r/manifest.json").read_text())
    assert [each["after_round"] for each in manifest["resumed"]] == [2, 2]
    with pytest.raises(StoreError, match=r"has ended, its result is in .*summary.json"):
        carry(tmp_path, resume=True)


def test_a_run_that_is_being_worked_on_or_has_lost_its_data_is_left_alone(
    carry: Carry, tmp_path: Path, few_users: Path
) -> None:
    assert carry(tmp_path, *BASIC, deliveries=7) is None
    script = (
        "import sys, time; from pathlib import Path; from server_app.run_folder import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).locked(): print('held', flush=True); time.sleep(600)"
    )
    env = {**os.environ, "PYTHONPATH": str(CONF.parent)}
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "r")], stdout=subprocess.PIPE, text=True, env=env
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match="is being worked on by another process"):
            carry(tmp_path, resume=True)
        holder.kill()
    file, content = few_users / "u.data", (few_users / "u.data").read_text()
    try:
        file.write_text(content + "17\t1\t5\t999999999\n")
        with pytest.raises(DataError, match=r"are not those that the run in .* began with"):
            carry(tmp_path, resume=True)
    finally:
        file.write_text(content)


def test_overrides_that_contradict_the_run_are_all_named_at_once(carry: Carry, tmp_path: Path) -> None:
    assert carry(tmp_path, *BASIC, deliveries=3) is None
    where = f"runs_dir={tmp_path}"
    same = ["dataset=ml_100k", "embedding.rank=2", "evaluation.ks=[5,10,20]", "seed=0"]
    config = compose(["resume=r", where, *same], base=None)
    assert (config.resume, config.run_id, config.strategy.rounds) == ("r", "r", ROUNDS)  # type: ignore[attr-defined]
    other = ["seed=1", "strategy.rounds=9", "embedding=hash", "embedding.buckets=3", "no_such.key=1"]
    with pytest.raises(ConfigError) as caught:
        compose(["resume=r", where, *same[:1], *other], base=None)
    assert sorted(problem.split(":")[0] for problem in caught.value.problems) == sorted(other)
    assert "the run r has strategy.rounds=6, and goes on with that: leave it out" in str(caught.value)
    with pytest.raises(ConfigError, match=r"resume=s: there is no run 's' in .*legal are r"):
        compose(["resume=s", where], base=None)
    with pytest.raises(ConfigError, match="the relative path means nothing in a running app"):
        compose(["resume=r", "runs_dir=here"], base=None)


def test_a_killed_process_goes_on(few_users: Path, uninterrupted: Callable[..., Any], tmp_path: Path) -> None:
    """`fedrec train`, SIGKILL in some round after the first checkpoint, `fedrec train resume=r`."""
    overrides = (*BASIC, "simulation.nodes=2", "optim.solve_epochs=2")
    env = {**os.environ, "PYTHONPATH": str(CONF.parent), "FEDREC_HOME": str(tmp_path / "home")}
    given = {text.partition("=")[0]: text for text in [*SMALL, f"dataset.root={few_users}", *overrides]}
    command = [sys.executable, "-m", "commands.cli", "train", "--json"]
    quiet: dict[str, Any] = {"cwd": tmp_path, "env": env, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*command, *given.values()], text=True, **quiet) as process:
        while not list((tmp_path / "runs/r/checkpoints").glob("*.json")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    done = subprocess.run([*command, "resume=r"], text=True, check=False, **quiet)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told.pop("beyond_accuracy")["coverage@10"] > 0, "the command works it out after the run"
    found, expected = result(tmp_path / "runs", told), uninterrupted(*BASIC)
    assert_same(found, expected)
