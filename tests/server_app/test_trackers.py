"""Runs followed in other programs: what these are told, that they end nothing, and what becomes of a resumed run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from client_app.answers import app as app_module
from client_app.answers.app import app as client_app
from commands.local_grid import LocalGrid
from fedrec.config.compose import compose
from fedrec.config.paths import settle
from fedrec.core.errors import ConfigError
from fedrec.core.registry import trackers
from fedrec.evaluation.curves import read_records
from server_app import run as run_module
from server_app.run import run
from server_app.trackers import base
from server_app.trackers.base import Tracked, figures
from server_app.trackers.none import NoTracker, NoTrackerConfig

SMALL = ["dataset.n_users=30", "dataset.n_items=40", "dataset.interactions_per_user=8", "dataset.topics=4"]
SMALL += ["base_table.dim=4", "embedding.rank=2", "strategy.rounds=4", "strategy.warmup_rounds=1"]
SMALL += ["evaluation.every=2", "checkpoint_every=1"]


def carried(folder: Path, *more: str, run_id: str = "t", pause: int | None = None) -> dict[str, Any]:
    app_module._node.cache_clear()
    places = [f"runs_dir={folder}/runs", f"cache_dir={folder}/cache"]
    texts = [*more, *places] if any(text.startswith("resume=") for text in more) else [*SMALL, *more, *places]
    if not more or not more[0].startswith("resume="):
        texts.append(f"run_id={run_id}")
    return run(settle(compose(texts, base=None), None), texts, LocalGrid(client_app, 2), pause=pause)


class Heard(NoTracker):
    """Remembers what it was told; told of rounds from the beginning, unless it says that it knows them."""

    def __init__(self, config: NoTrackerConfig) -> None:
        self.runs: list[Tracked] = []
        self.rounds: list[tuple[int, Mapping[str, float]]] = []
        self.ended: list[tuple[Mapping[str, float], bool]] = []
        heard.append(self)

    def begin(self, run: Tracked) -> bool:
        self.runs.append(run)
        return False

    def tell(self, round: int, figures: Mapping[str, float]) -> None:
        self.rounds.append((round, figures))

    def end(self, figures: Mapping[str, float], *, finished: bool) -> None:
        self.ended.append((figures, finished))


heard: list[Heard] = []


@pytest.fixture
def hearing(monkeypatch: pytest.MonkeyPatch) -> list[Heard]:
    heard.clear()
    trackers.get("none")
    monkeypatch.setitem(trackers._classes, "none", Heard)
    return heard


def test_a_tracker_is_told_of_every_round_and_of_the_end(tmp_path: Path, hearing: list[Heard]) -> None:
    summary = carried(tmp_path)
    (told,) = hearing
    records = read_records(tmp_path / "runs" / "t")
    assert told.rounds == [(record["round"], figures(record, without=("round", "rounds"))) for record in records]
    assert told.rounds[1][1]["validation/ndcg@10"] == records[1]["validation"]["ndcg@10"]
    ((last, finished),) = told.ended
    assert finished
    assert last["test/ndcg@10"] == summary["test"]["ndcg@10"]
    assert last["bytes_per_user/total"] == summary["bytes_per_user"]["total"]


def test_it_is_told_no_name_and_no_place_of_this_machine(tmp_path: Path, hearing: list[Heard]) -> None:
    carried(tmp_path, "encoder=tfidf")
    settings = hearing[0].runs[0].settings
    assert settings["embedding.rank"] == 2
    assert not {"runs_dir", "cache_dir", "run_id", "resume"} & settings.keys()
    assert not any(str(tmp_path) in str(value) for value in settings.values())


def test_a_run_that_goes_on_is_told_of_what_was_before(tmp_path: Path, hearing: list[Heard]) -> None:
    carried(tmp_path, "strategy.patience=null", pause=2)
    carried(tmp_path, "resume=t")
    told = hearing[-1]
    assert told.runs[0].after == 2
    assert [number for number, _ in told.rounds] == [1, 2, 3, 4]
    assert [finished for _, finished in told.ended] == [True]


def test_a_run_that_fails_ends_for_its_tracker(
    tmp_path: Path, hearing: list[Heard], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "chosen", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        carried(tmp_path)
    assert hearing[0].ended == [({}, False)]


@pytest.mark.parametrize("where", ["begin", "tell", "end"])
def test_a_tracker_that_fails_is_told_nothing_more_and_the_run_goes_on(
    where: str, tmp_path: Path, hearing: list[Heard], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object, **__: object) -> bool:
        raise ConnectionError("no such server")

    monkeypatch.setattr(Heard, where, fails)
    assert carried(tmp_path)["rounds"] == 4
    said = [text for text in caplog.messages if text.startswith("tracker=none: it is told nothing more")]
    assert len(said) == 1
    assert "ConnectionError: no such server" in said[0]
    assert len(hearing[0].rounds) == (4 if where == "end" else 0)


def test_one_that_is_not_installed_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base.importlib.util, "find_spec", lambda _: None)
    for name in ("tensorboard", "mlflow", "wandb"):
        compose([f"tracker={name}"], base=None)  # the configuration of a run that is read is none to start
        with pytest.raises(ConfigError, match=f"tracker={name}: needs the package {name}.*`pip install {name}`"):
            carried(tmp_path, f"tracker={name}", run_id=name)
        assert not (tmp_path / "runs" / name / "manifest.json").exists()


def test_figures_are_the_numbers_and_nothing_else() -> None:
    values = {"a": 1, "b": {"c": 2.5, "d": None, "e": "text", "f": True}, "g": [1], "round": 3}
    assert figures(values, without=("round",)) == {"a": 1.0, "b/c": 2.5}


# ---- the programs ----------------------------------------------------------------------------------------------------


def test_tensorboard_finds_the_rounds_in_the_runs_folder_once_each(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    carried(tmp_path, "tracker=tensorboard", "strategy.patience=null", pause=2)
    assert not (tmp_path / "runs/t/tensorboard").exists(), "a part that may be given up is followed by nobody"
    summary = carried(tmp_path, "resume=t")
    events = EventAccumulator(str(tmp_path / "runs/t/tensorboard"))
    events.Reload()
    records = read_records(tmp_path / "runs/t")
    losses = events.Scalars("loss")
    assert [event.step for event in losses] == [1, 2, 3, 4]
    assert [event.value for event in losses] == pytest.approx([record["loss"] for record in records], rel=1e-6)
    assert [event.step for event in events.Scalars("validation/ndcg@10")] == [2, 4]
    assert events.Scalars("end/test/ndcg@10")[0].value == pytest.approx(summary["test"]["ndcg@10"], rel=1e-6)


@pytest.mark.runtime
def test_mlflow_has_the_run_in_a_folder_and_goes_on_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient

    uri = f"tracker.uri=file://{tmp_path}/mlruns"
    monkeypatch.setattr(run_module, "chosen", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # after the last round; its checkpoint is there
        carried(tmp_path, "tracker=mlflow", uri)
    client = MlflowClient(f"file://{tmp_path}/mlruns")
    experiment = client.get_experiment_by_name("fedrec")
    (before,) = client.search_runs([experiment.experiment_id])
    assert before.info.status == "FAILED"
    monkeypatch.undo()
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    summary = carried(tmp_path, "resume=t")
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_id, found.info.status) == (before.info.run_id, "FINISHED")
    assert found.data.params["embedding.rank"] == "2"
    assert found.data.metrics["end/test/ndcg_10"] == summary["test"]["ndcg@10"]
    assert [point.step for point in client.get_metric_history(found.info.run_id, "loss")][:4] == [1, 2, 3, 4]


@pytest.mark.runtime
def test_wandb_keeps_the_run_offline_and_nothing_of_the_machine(tmp_path: Path) -> None:
    import wandb

    assert wandb.__version__
    carried(tmp_path, "tracker=wandb")
    (kept,) = (tmp_path / "runs/t/wandb").glob("offline-run-*/*.wandb")
    content = kept.read_bytes()
    assert b"ndcg@10" in content
    assert str(tmp_path / "cache").encode() not in content
    told = [path.name for path in kept.parent.rglob("*") if path.is_file()]
    assert "wandb-metadata.json" not in told, "it would have the machine's name and what is installed on it"
