"""Runs that are there: listed and deleted, their items compared, their vectors exported, their card written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
import yaml
from filelock import FileLock
from typer.testing import CliRunner

import fedrec
from client_app.answers import recommending
from client_app.answers.recommending import Solved
from commands import export as exporting
from commands.cli import app
from commands.export import export
from commands.item_vectors import most_similar
from commands.kept_run import of_run
from commands.model_card import card, write_card
from commands.places import RecommendError
from commands.run_list import delete_runs, runs_in
from fedrec.core.errors import FedrecError
from fedrec.core.strict_json import parsed_object
from server_app.checkpoints import Checkpoints

SMALL = {
    "dataset": {"n_users": 40, "n_items": 60, "interactions_per_user": 8, "topics": 4},
    "base_table": {"dim": 8},
    "strategy": {"rounds": 2, "warmup_rounds": 1},
    "embedding": {"rank": 2},
    "optim": {"lr": 0.05},
    "evaluation": {"every": 1},
}


def trained(folder: Path, run_id: str, *overrides: str) -> Path:
    run = fedrec.train(
        *overrides, quiet=True, run_id=run_id, runs_dir=folder / "runs", cache_dir=folder / "cache", **SMALL
    )
    return run.folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def a_run(folder: Path) -> Path:
    return trained(folder, "plain")


@pytest.fixture(scope="module")
def grouped(folder: Path) -> Path:
    overrides = ["strategy=fellrec", "grouping=key", "grouping.groups=2", "embedding=full", "backbone=recency"]
    small = {key: value for key, value in SMALL.items() if key not in ("embedding", "strategy", "optim")}
    places = {"runs_dir": folder / "groups", "cache_dir": folder / "cache"}
    more = ["strategy.rounds=1", "optim=fast", "optim.loss=softmax"]
    return fedrec.train(*overrides, *more, quiet=True, run_id="groups", **places, **small).folder


def test_of_a_large_run_some_lists_are_looked_at_and_no_failure_there_ends_it(
    tmp_path: Path, a_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = len(of_run(a_run).node.sampler.eligible)
    monkeypatch.setattr("commands.beyond_accuracy.MOST_SCORES", 7 * items)
    assert json.loads((trained(tmp_path, "some") / "summary.json").read_text())["beyond_accuracy"]["users"] == 7

    def full(*_: Any, **__: Any) -> Any:
        raise MemoryError("no room")

    monkeypatch.setattr("commands.beyond_accuracy.list_metrics", full)
    told = json.loads((trained(tmp_path, "none") / "summary.json").read_text())
    assert "beyond_accuracy" not in told
    assert told["test"]["users"] > 7


def typed(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output


def said(*arguments: str) -> dict[str, Any]:
    status, output = typed(*arguments, "--json")
    assert status == 0, output
    return parsed_object(output.splitlines()[-1])


# Alike ----------------------------------------------------------------------------------------------------------------


def test_alike_is_what_the_api_finds(a_run: Path) -> None:
    found = said("similar", str(a_run), "--item", "i17", "--top", "5")
    frame = fedrec.Run(a_run).similar_items("i17", 5)
    assert [item["item_id"] for item in found["items"]] == list(frame["item_id"])
    assert [item["similarity"] for item in found["items"]] == pytest.approx(list(frame["similarity"]))


def test_lists_are_looked_at_as_when_the_run_ended(a_run: Path) -> None:
    told = fedrec.Run(a_run).summary["beyond_accuracy"]
    found = said("evaluate", str(a_run))
    assert {name: found[name] for name in told} == pytest.approx(told)
    longer = said("evaluate", str(a_run), "--top", "7", "--top", "60")
    assert longer["coverage@60"] == 1.0  # a list of all that a user does not know
    assert {name.partition("@")[2] for name in longer if "@" in name} == {"7", "60"}
    status, output = typed("evaluate", str(a_run))
    assert status == 0
    assert "novelty" in output
    assert "or the state-dir" in typed("evaluate")[1]


def test_alike_are_the_largest_cosines_of_all(a_run: Path) -> None:
    vectors = fedrec.Run(a_run).item_vectors().astype(np.float64)
    cosines = vectors @ vectors[3] / (np.linalg.norm(vectors, axis=1) * np.linalg.norm(vectors[3]))
    source = of_run(a_run)
    cosines[np.setdiff1d(np.arange(60), source.node.sampler.eligible)] = -2.0  # nobody has them
    cosines[3] = -2.0
    rows, found = most_similar(source, 3, 4)
    assert rows == np.argsort(-cosines, kind="stable")[:4].tolist()
    assert found == pytest.approx(np.sort(cosines)[::-1][:4], abs=1e-6)


def test_a_table_shows_them_and_an_unknown_item_is_named(a_run: Path) -> None:
    status, output = typed("similar", str(a_run), "--item", "i17")
    assert status == 0
    assert "Like i17" in output
    status, output = typed("similar", str(a_run), "--item", "no such")
    assert status == 1
    assert "--item no such: there is no such item" in output


def test_a_run_with_groups_wants_one_named(a_run: Path, grouped: Path) -> None:
    assert "name one of 0, 1" in typed("similar", str(grouped), "--item", "i17")[1]
    assert said("similar", str(grouped), "--item", "i17", "--group", "1")["items"]
    assert "the run has no groups" in typed("similar", str(a_run), "--item", "i17", "--group", "1")[1]


# Exported -------------------------------------------------------------------------------------------------------------


def test_what_is_exported_recommends_as_fedrec_does(a_run: Path, tmp_path: Path) -> None:
    """The README's way to serve from the files: an inner product, without what a user knows."""
    found = said("export", str(a_run), "--out", str(tmp_path / "out"))
    assert (found["items"], found["users"], found["left_out"], found["dim"]) == (60, 40, 0, 8)
    items = parquet.read_table(tmp_path / "out" / "items.parquet").to_pandas()
    users = parquet.read_table(tmp_path / "out" / "users.parquet").to_pandas()
    vectors = np.load(tmp_path / "out" / "item_vectors.npy")
    assert (tmp_path / "out" / "users.parquet").stat().st_mode & 0o077 == 0
    assert np.array_equal(np.stack(items["vector"]), vectors)
    assert np.array_equal(vectors, fedrec.Run(a_run).item_vectors())
    scores = np.stack(users["user"]) @ vectors.T
    run = fedrec.Run(a_run)
    best = run.recommend(n=3)
    place = {item: row for row, item in enumerate(items["item_id"])}
    for user, row in zip(users["user_id"], scores, strict=True):
        mine = best[best["user_id"] == user]
        assert [row[place[item]] for item in mine["item_id"]] == pytest.approx(list(mine["score"]), abs=1e-5)


def test_groups_have_vectors_of_their_own_and_users_their_group(grouped: Path, tmp_path: Path) -> None:
    export(str(grouped), None, tmp_path)
    items = parquet.read_table(tmp_path / "items.parquet")
    assert {"vector_0", "vector_1"} <= set(items.column_names)
    users = parquet.read_table(tmp_path / "users.parquet").to_pandas()
    assert set(users["group"]) == {"0", "1"}
    assert len(users) == 40
    assert np.stack(users["state"]).shape == (40, 8)
    assert not np.array_equal(np.load(tmp_path / "item_vectors_0.npy"), np.load(tmp_path / "item_vectors_1.npy"))


def test_an_export_overwrites_nothing(a_run: Path, tmp_path: Path) -> None:
    (tmp_path / "users.parquet").write_text("mine")
    with pytest.raises(RecommendError, match=r"has users\.parquet already"):
        export(str(a_run), None, tmp_path)
    assert (tmp_path / "users.parquet").read_text() == "mine"


def test_who_has_diverged_is_left_out_and_counted(a_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = exporting.solve

    def half(*arguments: object) -> Solved:
        solved = real(*arguments)  # type: ignore[arg-type]
        sane = solved.sane.copy()
        sane[::2] = False
        kept = torch.from_numpy(sane)
        return Solved({name: tensor[kept] for name, tensor in solved.private.items()}, solved.trained, sane)

    monkeypatch.setattr(exporting, "solve", half)
    found = export(str(a_run), None, tmp_path / "half")
    assert (found["users"], found["left_out"]) == (20, 20)
    monkeypatch.setattr(exporting, "solve", lambda *_: Solved({}, np.zeros(40, dtype=bool), np.zeros(40, dtype=bool)))
    with pytest.raises(RecommendError, match="nothing to export"):
        export(str(a_run), None, tmp_path / "none")
    assert list((tmp_path / "none").iterdir()) == []


def test_recommending_reads_what_is_exported(a_run: Path) -> None:
    """`best_items` scores with the tensors of `read_by_score`, in chunks of any size."""
    source = of_run(a_run)
    users = source.node.users.whole(np.arange(40))
    solved = recommending.solve(source.node, source.models[0], users)
    read = recommending.read_by_score(source.models[0].model.cpu(), users, solved.private)
    one = recommending.read_by_score(
        source.models[0].model.cpu(),
        users.select(np.array([7])),
        {name: tensor[7:8] for name, tensor in solved.private.items()},
    )
    assert all(torch.equal(one[name], read[name][7:8]) for name in read)


def test_of_a_group_without_users_nobody_is_served(
    grouped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has trained its model: the nearest serves who would be in it, alone and among all."""
    real = Checkpoints.newest

    def without(self: Checkpoints) -> Any:
        checkpoint, kept = real(self)
        assert checkpoint is not None
        return dataclasses.replace(checkpoint, groups=np.zeros_like(checkpoint.groups)), kept

    monkeypatch.setattr(Checkpoints, "newest", without)
    source = of_run(grouped)
    assert list(source.models) == [0]
    node = source.node
    user = node.users.ids(np.flatnonzero(node.groups == 1)[:1])[0]
    alone = said("recommend", str(grouped), "--user", user, "--top", "3")
    assert (alone["group"], alone["instead_of"]) == ("0", "1")
    found = said("recommend", str(grouped), "--all", "--top", "3", "--out", str(tmp_path / "all.parquet"))
    assert (found["users"], found["left_out"]) == (40, {})
    frame = parquet.read_table(tmp_path / "all.parquet").to_pandas()
    items = [item["item_id"] for item in alone["items"]]
    assert list(frame[frame["user_id"] == user]["item_id"]) == items
    assert list(fedrec.Run(grouped).recommend([user], n=3)["item_id"]) == items


# Listed and deleted ---------------------------------------------------------------------------------------------------


def test_runs_are_listed_with_what_they_came_to(a_run: Path) -> None:
    (run,) = runs_in(a_run.parent, [])
    summary = fedrec.Run(a_run).summary
    assert (run.run, run.state, run.rounds) == ("plain", "finished", (2, 2))
    assert run.what == "fedpeft lora fedmf synthetic"
    assert run.ndcg == summary["test"]["ndcg@10"]
    assert run.bytes_per_user == summary["bytes_per_user"]["total"]
    status, output = typed("runs", "--in", str(a_run.parent))
    assert status == 0
    assert "plain" in output
    assert "finished" in output


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        (["embedding=lora"], 1),
        (["embedding=full"], 0),
        (["embedding.rank=2", "seed=0"], 1),
        (["embedding.rank=3"], 0),
        (["evaluation.ks=[5, 10, 20]"], 1),
        (["optim.lr=5e-2"], 1),
    ],
)
def test_runs_are_chosen_by_their_configuration(a_run: Path, filters: list[str], found: int) -> None:
    assert len(runs_in(a_run.parent, filters)) == found


@pytest.mark.parametrize(
    ("filters", "words"),
    [
        (["embeding=lora"], "embeding: no run in .* did you mean embedding"),
        (["lora"], "lora: expected key=value"),
        (["seed=[1"], r"seed=\[1: the value cannot be read"),
    ],
)
def test_a_filter_that_fits_no_run_says_so(a_run: Path, filters: list[str], words: str) -> None:
    with pytest.raises(FedrecError, match=words):
        runs_in(a_run.parent, filters)


def copied(a_run: Path, to: Path) -> Path:
    to.mkdir(parents=True)
    for name in ("config.yaml", "summary.json", "metrics.jsonl", "lock"):
        (to / name).write_bytes((a_run / name).read_bytes())
    return to


def test_states_are_told_from_one_another(a_run: Path, tmp_path: Path) -> None:
    (copied(a_run, tmp_path / "stopped") / "summary.json").unlink()
    (copied(a_run, tmp_path / "torn") / "summary.json").write_text("{")
    (copied(a_run, tmp_path / "unreadable") / "config.yaml").write_text("{")
    (tmp_path / "no_run").mkdir()
    (tmp_path / "link").symlink_to(a_run)
    worked_on = copied(a_run, tmp_path / "worked_on")
    with FileLock(worked_on / "lock"):
        found = {run.run: run for run in runs_in(tmp_path, [])}
        with pytest.raises(FedrecError, match="worked_on: a process is working on it"):
            delete_runs(tmp_path, ["stopped", "worked_on"])
    assert {name: run.state for name, run in found.items()} == {
        "stopped": "interrupted",
        "torn": "damaged",
        "unreadable": "damaged",
        "worked_on": "running",
    }
    assert found["stopped"].rounds == (2, 2)
    assert (tmp_path / "stopped").is_dir()  # all or none


def test_runs_are_deleted_by_name_and_nothing_else_is(a_run: Path, tmp_path: Path) -> None:
    copied(a_run, tmp_path / "one")
    copied(a_run, tmp_path / "two")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "config.yaml").write_text("of: something else")
    for name in ("notes", "../one", "three"):
        with pytest.raises(FedrecError, match="there is no such run"):
            delete_runs(tmp_path, [name])
    with pytest.raises(FedrecError, match="nothing beside them"):
        delete_runs(tmp_path, ["one"], ["seed=0"])
    assert said("runs", "--in", str(tmp_path), "--delete", "one")["deleted"] == ["one"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", "two"]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    status, output = typed("runs", "--in", str(tmp_path / "none"))
    assert status == 1
    assert "there is no such folder" in output
    assert "no such runs" in typed("runs", "--in", str(tmp_path))[1]


# A card ---------------------------------------------------------------------------------------------------------------


def test_a_card_says_what_the_summary_says_and_no_path(a_run: Path) -> None:
    path = Path(str(said("card", str(a_run))["card"]))
    assert path == a_run / "README.md"
    text = path.read_text()
    _, front, body = text.split("---\n", 2)
    test = fedrec.Run(a_run).summary["test"]
    (model,) = yaml.safe_load(front)["model-index"]
    metrics = {metric["type"]: metric["value"] for metric in model["results"][0]["metrics"]}
    assert metrics["ndcg@10"] == test["ndcg@10"]
    assert f"**{test['ndcg@10']:.4f}**" in body
    assert "`embedding.rank` | `2`" in body
    assert "No differential privacy was asked for" in body
    assert str(a_run.parent.parent) not in text
    write_card(a_run, None)  # it may be made again in its own place
    path.write_text("my own notes")
    with pytest.raises(FedrecError, match="there is such a file already"):
        write_card(a_run, None)
    path.unlink()
    other = a_run.parent / "other.md"
    write_card(a_run, other)
    with pytest.raises(FedrecError, match="there is such a file already"):
        write_card(a_run, other)
    other.unlink()


def test_a_card_of_a_run_with_an_account_states_it(a_run: Path) -> None:
    manifest = json.loads((a_run / "manifest.json").read_text())
    account = {"epsilon": 7.99, "delta": 1e-5, "unit": "user, add/remove", "caveat": "Not covered: the search."}
    text = card(a_run, {**fedrec.Run(a_run).summary, "privacy": account}, manifest)
    assert "epsilon = 7.990 at delta = 1e-05 (user, add/remove)." in text
    assert "Not covered: the search." in text


def test_a_card_names_no_server_and_a_baseline_has_none(a_run: Path, tmp_path: Path) -> None:
    told = copied(a_run, tmp_path / "told")
    (told / "manifest.json").write_bytes((a_run / "manifest.json").read_bytes())
    config = yaml.safe_load((told / "config.yaml").read_text())
    config["tracker"] = {"name": "mlflow", "uri": "https://me:secret@there/x", "experiment": "films"}
    (told / "config.yaml").write_text(yaml.safe_dump(config))
    text = write_card(told, None).read_text()
    assert "films" in text
    assert "secret" not in text
    summary = json.loads((told / "summary.json").read_text())
    (told / "summary.json").write_text(json.dumps({**summary, "baseline": "popularity"}))
    with pytest.raises(FedrecError, match="is that of a baseline"):
        write_card(told, None)


def test_a_card_wants_a_finished_run(tmp_path: Path) -> None:
    with pytest.raises(FedrecError, match="not the folder of a finished run"):
        write_card(tmp_path, None)
