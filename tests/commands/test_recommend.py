"""Recommendations: of items that the user does not know, those that the model ranks first, whoever asks and however."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from typer.testing import CliRunner

from client_app.answers import app as app_module
from client_app.answers.app import app as client_app
from client_app.answers.evaluation import RankingProtocol, rank_users
from client_app.answers.node import Node
from client_app.answers.recommending import NOTHING, best_items
from client_app.answers.recommending import recommend as recommend_many
from client_app.training.engine import GlobalModel
from commands import recommend_all as recommend_all_module
from commands.cli import app
from commands.local_grid import LocalGrid
from commands.places import RecommendError
from commands.recommend import of_run, of_site, recommend, show_recommendation
from fedrec.config.compose import compose
from fedrec.config.describe import complete_members
from fedrec.config.paths import settle
from fedrec.core.errors import StoreError
from fedrec.data import split
from fedrec.data.store import open_store
from server_app.run import run

WARM = "strategy.warmup_rounds=1"
SMALL = [
    "base_table.dim=8",
    "strategy.rounds=3",
    "federation.fraction=1.0",
    WARM,
    "evaluation.every=0",
    "evaluation.baselines=false",
    "optim.lr=0.05",
]
SHOP = ["dataset.n_users=40", "dataset.n_items=60", "dataset.interactions_per_user=8", "dataset.topics=4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recommend")


def simulated(folder: Path, run_id: str, *overrides: str) -> Path:
    small = [text for text in SMALL if text != WARM or "strategy=full" not in overrides]
    texts = [*small, *SHOP, *overrides, f"runs_dir={folder}/runs", f"cache_dir={folder}/cache", f"run_id={run_id}"]
    app_module._node.cache_clear()
    summary = run(settle(compose(texts, base=None), None), texts, LocalGrid(client_app, 2))
    return Path(summary["run"])


@pytest.fixture(scope="module")
def a_run(folder: Path) -> Path:
    return simulated(folder, "plain", "embedding.rank=2")


@pytest.fixture(scope="module")
def a_site(folder: Path, a_run: Path) -> Path:
    """A site with the same users, whose own file is gone by now."""
    return deployed(folder, a_run, "deployed", *SMALL, "embedding.rank=2", "strategy.merge_every=1")


def deployed(folder: Path, a_run: Path, run_id: str, *overrides: str) -> Path:
    """The state-dir of a site with the users of a run, after a run of its own; its own file is gone by then."""
    items = json.loads((a_run / "items.json").read_text())["ids"]
    (folder / "items.csv").write_text("item_id,title\n" + "".join(f"{item},[Title] of {item}\n" for item in items))
    store = open_store(Path(json.loads((a_run / "setup.json").read_text())["simulation"]["interactions"]))
    lines = [f"{user},{items[row]}" for n, user in enumerate(store.user_ids) for row in store.history(n).tolist()]
    (folder / "clicks.csv").write_text("user_id,item_id\n" + "\n".join(lines) + "\n")
    config = {"interactions": f"{folder}/clicks.csv", "state-dir": f"{folder}/{run_id}", "time-column": ""}
    texts = [*overrides, "runtime=deployment", "dataset=table", f"dataset.item_table={folder}/items.csv"]
    texts += ["base_table.start=random", "simulation.nodes=1"]
    texts += [f"runs_dir={folder}/runs", f"cache_dir={folder}/cache", f"run_id={run_id}"]
    app_module._node.cache_clear()
    run(settle(compose(texts, base=None), None), texts, LocalGrid(client_app, [config]))
    (folder / "clicks.csv").unlink()  # what recommends needs nothing but the state-dir
    return folder / run_id


def ids(found: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in found["items"]]


@pytest.mark.parametrize("backbone", complete_members("backbone"))
@pytest.mark.parametrize("embedding", ["lora", "full"])
def test_the_best_items_are_those_of_the_ranking(folder: Path, backbone: str, embedding: str) -> None:
    """The held-out item's place among the recommended ones is its rank when the same model is measured."""
    also = ["strategy=full"] if embedding == "full" else ["embedding.rank=2"]
    source = of_run(simulated(folder, f"{backbone}-{embedding}", f"backbone={backbone}", *also))
    node, model = source.node, source.models[0].model
    cohort, positives = node.users.held_out(node.users.evaluated("test")[:8], "test")
    private, _ = node.private(cohort.keys, before=4)
    private = node.engine.solve(model, cohort, private, 5)
    measured = rank_users(model, cohort, positives, private, RankingProtocol((10,), node.sampler, 0, 0))
    reciprocal = 0.0
    for n, positive in enumerate(positives.tolist()):
        own = {name: tensor[n : n + 1] for name, tensor in private.items()}
        one = cohort.select(np.array([n]))
        eligible = torch.from_numpy(node.sampler.eligible)
        (rows,), (scores,) = best_items(model, one, own, eligible, len(eligible))
        known = set(one.items.tolist())
        assert (rows[len(eligible) - len(known) :] == NOTHING).all()
        rows, scores = rows[: len(eligible) - len(known)], scores[: len(eligible) - len(known)]
        assert sorted(rows.tolist()) == [row for row in node.sampler.eligible.tolist() if row not in known]
        assert (scores[:-1] >= scores[1:]).all()
        reciprocal += 1 / (1 + rows.tolist().index(positive))
    assert reciprocal == pytest.approx(measured["mrr"], rel=1e-6)


def test_a_run_recommends_to_its_users(a_run: Path) -> None:
    users = open_store(Path(json.loads((a_run / "setup.json").read_text())["simulation"]["interactions"]))
    first = users.user_ids[0]
    found = recommend(str(a_run), None, first, None, 5)
    assert len(found["items"]) == 5
    assert found["round"] == 3
    assert found["history"] == len(users.history(0))
    known = {json.loads((a_run / "items.json").read_text())["ids"][row] for row in users.history(0)}
    assert not known & set(ids(found))
    assert recommend(str(a_run), None, first, None, 5) == found
    everything = recommend(str(a_run), None, first, None, 1000)
    assert len(everything["items"]) == len(of_run(a_run).node.sampler.eligible) - len(known)
    other = recommend(str(a_run), None, users.user_ids[1], None, 1000)
    assert ids(other) != ids(everything)


def table(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of recommendations."""
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    lines: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    return lines


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_all_users_get_in_a_file_what_each_gets_alone(a_run: Path, tmp_path: Path, form: str) -> None:
    done = CliRunner().invoke(app, ["recommend", str(a_run), "--all", "--out", f"{tmp_path}/all.{form}", "--top", "7"])
    assert done.exit_code == 0, done.output
    assert "40 users" in done.output
    found = table(tmp_path / f"all.{form}")
    assert set(found[0]) == {"user_id", "rank", "item_id", "title", "score"}
    node = of_run(a_run).node
    users = node.users.ids(np.arange(len(node.users)))
    assert [line["user_id"] for line in found] == [user for user in users for _ in range(7)]
    for user in (users[0], users[17], users[39]):
        alone = recommend(str(a_run), None, user, None, 7)["items"]
        mine = [line for line in found if line["user_id"] == user]
        assert [int(line["rank"]) for line in mine] == [1, 2, 3, 4, 5, 6, 7]
        assert [(line["item_id"], line["title"]) for line in mine] == [(i["item_id"], i["title"]) for i in alone]
        assert [float(line["score"]) for line in mine] == pytest.approx([item["score"] for item in alone], rel=1e-6)


def damaged_first(starts: Any, node: Node, keys: Any, before: int) -> Any:
    """What users begin with, the first of them with numbers that are none."""
    private, trained = starts(node, keys, before)
    next(iter(private.values()))[0] = torch.nan
    return private, trained


def test_a_site_writes_all_its_users_and_says_who_is_left_out(
    a_site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = Node.starts

    def damaged(self: Node, keys: Any, before: int) -> Any:
        private, trained = starts(self, keys, before)
        next(iter(private.values()))[3] = torch.nan
        return private, trained

    monkeypatch.setattr(Node, "starts", damaged)
    out = tmp_path / "all.csv"
    done = CliRunner().invoke(app, ["recommend", "--state-dir", str(a_site), "--all", "--out", str(out), "--json"])
    told = json.loads(done.stdout)
    assert (told["users"], told["never_trained"], told["left_out"]) == (39, 0, {"diverged": 1})
    monkeypatch.setattr(recommend_all_module, "_USERS_AT_ONCE", 3)  # the fourth user is then the first of its part
    monkeypatch.setattr(Node, "starts", lambda node, keys, before: damaged_first(starts, node, keys, before))
    parts = recommend_all_module.recommend_all(None, str(a_site), 3, str(tmp_path / "parts.csv"))
    assert (parts["users"], parts["left_out"]) == (26, {"diverged": 14})
    monkeypatch.setattr(recommend_all_module, "_USERS_AT_ONCE", 1)
    with pytest.raises(
        RecommendError, match=r"none of the 40 users here can be recommended anything: .*'diverged': 40"
    ):
        recommend_all_module.recommend_all(None, str(a_site), 3, str(tmp_path / "parts.csv"))
    monkeypatch.setattr(Node, "starts", damaged)
    ids = of_site(a_site).node.users.ids(np.arange(40))
    assert list(dict.fromkeys(line["user_id"] for line in table(out))) == [*ids[:3], *ids[4:]]


def test_a_file_of_all_users_appears_whole_or_not_at_all(
    a_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recommend_all_module, "_USERS_AT_ONCE", 16)
    count = 0

    def failing(*given: Any) -> Any:
        nonlocal count
        count += 1
        if count == 2:
            raise StoreError("no more")
        return recommend_many(*given)

    monkeypatch.setattr(recommend_all_module, "best", failing)
    out = tmp_path / "all.csv"
    out.write_text("what was there")
    with pytest.raises(StoreError, match="no more"):
        recommend_all_module.recommend_all(str(a_run), None, 3, str(out))
    assert [path.name for path in tmp_path.iterdir()] == ["all.csv"]
    assert out.read_text() == "what was there"
    count = 2
    assert recommend_all_module.recommend_all(str(a_run), None, 3, str(out))["users"] == 40


def test_of_equal_scores_the_first_of_the_catalogue_are_taken(a_run: Path) -> None:
    source = of_run(a_run)
    node, model = source.node, source.models[0].model
    level = {name: torch.zeros_like(tensor) for name, tensor in model.trainable.items()}
    frozen = {name: torch.zeros_like(tensor) for name, tensor in model.frozen.items()}
    users = node.users.whole(np.arange(5))
    private, _ = node.private(users.keys, before=4)
    eligible = torch.from_numpy(node.sampler.eligible)
    rows, _ = best_items(GlobalModel(model.model, level, frozen), users, private, eligible, 4)
    for user in range(5):
        known = set(users.select(np.array([user])).items.tolist())
        assert rows[user].tolist() == [row for row in eligible.tolist() if row not in known][:4]


def test_a_run_that_was_moved_recommends_too(a_run: Path, tmp_path: Path) -> None:
    user = of_run(a_run).node.users._interactions.user_ids[0]
    before = recommend(str(a_run), None, user, None, 5)
    shutil.copytree(a_run, tmp_path / "moved")
    after = recommend(str(tmp_path / "moved"), None, user, None, 5)
    assert after["items"] == before["items"]


def test_somebody_new_is_solved_from_a_history(a_run: Path) -> None:
    source = of_run(a_run)
    users = source.node.users
    whole = users.whole(np.array([0]))
    history = ",".join(source.items.ids[row] for row in whole.items)
    found = recommend(str(a_run), None, None, history, 60)
    assert not found["trained"]
    assert found["user"] is None
    assert not set(history.split(",")) & set(ids(found))
    assert recommend(str(a_run), None, None, history.replace(",", "\n"), 60) == found, "one below the other"
    other = ",".join(source.items.ids[row] for row in users.whole(np.array([1])).items)
    assert ids(recommend(str(a_run), None, None, other, 60)) != ids(found)


def test_who_knows_everything_is_told_that_nothing_is_left(a_run: Path) -> None:
    every = ",".join(json.loads((a_run / "items.json").read_text(encoding="utf-8"))["ids"])
    with pytest.raises(RecommendError, match="nothing left to recommend"):
        recommend(str(a_run), None, None, every, 3)


def test_a_site_recommends_from_its_state_dir_alone(a_site: Path) -> None:
    source = of_site(a_site)
    user = source.node.users._interactions.user_ids[0]
    found = recommend(None, str(a_site), user, None, 4)
    assert len(found["items"]) == 4
    assert all(item["title"] == f"[Title] of {item['item_id']}" for item in found["items"])
    known = {source.items.ids[row] for row in source.node.users.whole(np.array([0])).items}
    assert not known & set(ids(found))
    assert found["round"] == 3
    assert found["trained"]


def test_a_site_and_its_server_recommend_with_the_table_that_steps_have_moved(folder: Path, a_run: Path) -> None:
    small = [text for text in SMALL if text != WARM]
    source = of_site(deployed(folder, a_run, "stepped", *small, "strategy=full", "codec=int8", "downlink=actions"))
    checkpoint = load_file(folder / "runs/stepped/checkpoints/round-000003.safetensors")
    found = source.models[0].model.trainable["embedding.items"]
    assert torch.equal(found, checkpoint["frozen.embedding.items"])
    assert not torch.equal(found, checkpoint["trainable.embedding.items"])
    simulation = of_run(simulated(folder, "steps", "strategy=full", "codec=int8", "downlink=actions"))
    checkpoint = load_file(folder / "runs/steps/checkpoints/round-000003.safetensors")
    assert torch.equal(simulation.models[0].model.trainable["embedding.items"], checkpoint["frozen.embedding.items"])


def test_the_command_prints_a_table_or_one_line_of_json(a_site: Path) -> None:
    user = of_site(a_site).node.users._interactions.user_ids[0]
    plain = CliRunner().invoke(app, ["recommend", "--state-dir", str(a_site), "--user", user, "--top", "3"])
    assert plain.exit_code == 0, plain.output
    assert "[Title] of" in plain.output
    done = CliRunner().invoke(app, ["recommend", "--state-dir", str(a_site), "--user", user, "--top", "3", "--json"])
    assert [item["item_id"] in plain.output for item in json.loads(done.stdout)["items"]] == [True] * 3


def test_a_damaged_last_model_is_said_and_an_older_one_taken(a_site: Path, tmp_path: Path) -> None:
    copy = tmp_path / "device"
    shutil.copytree(a_site, copy)
    model = next((copy / "models").glob("*.model"))
    good = model.read_bytes()
    (copy / "models" / "0123456789abcdef.model").write_bytes(good[: len(good) // 2])
    assert of_site(copy).round == 3
    model.write_bytes(good[:-7])
    failed = CliRunner().invoke(app, ["recommend", "--state-dir", str(copy), "--user", "u"])
    assert failed.exit_code == 1
    assert "no model in" in failed.output
    assert "Traceback" not in failed.output


MISTAKES = {
    "nothing to recommend from": (["--user", "u"], "give either the folder of a simulated run"),
    "both": (["RUN", "--state-dir", "SITE", "--user", "u"], "give either the folder of a simulated run"),
    "nobody": (["RUN"], "give either a user of the data"),
    "an unknown user": (["RUN", "--user", "nobody"], "none of the 40 users here has this id"),
    "an unknown user of a site": (["--state-dir", "SITE", "--user", "nobody"], "none of the 40 users here"),
    "no such run": (["RUNS/plein", "--user", "u"], "did you mean"),
    "another folder": (["RUNS", "--user", "u"], "is not the folder of a run"),
    "a server's folder": (["RUNS/deployed", "--user", "u"], "its users are with their SuperNodes"),
    "no such state-dir": (["--state-dir", "RUN/nowhere", "--user", "u"], "there is no such folder"),
    "no model yet": (["--state-dir", "RUNS", "--user", "u"], "holds no model yet"),
    "an unknown item": (["RUN", "--history", "FIRSTx,@"], "--history @: there is no such item"),
    "an empty history": (["RUN", "--history", " , "], "it is empty"),
    "all without a file": (["RUN", "--all"], "--all and --out FILE go together"),
    "a file for one": (["RUN", "--user", "u", "--out", "x.csv"], "--all and --out FILE go together"),
    "all and one": (["RUN", "--all", "--user", "u", "--out", "x.csv"], "give either a user of the data"),
    "another form": (["RUN", "--all", "--out", "x.xlsx"], "expected the name of a .csv or .parquet file"),
    "no place for the file": (["RUN", "--all", "--out", "/dev/null/x.csv"], "--out /dev/null/x.csv: the file"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_said_plainly(a_run: Path, a_site: Path, mistake: str) -> None:
    typed, said = MISTAKES[mistake]
    first = of_run(a_run).items.ids[0]
    places = {"RUNS": str(a_run.parent), "RUN": str(a_run), "SITE": str(a_site), "FIRST": first}

    def filled(word: str) -> str:
        for name, value in places.items():
            word = word.replace(name, value) if not word.startswith("/") else word
        return word

    done = CliRunner().invoke(app, ["recommend", *map(filled, typed)])
    assert done.exit_code == 1
    assert said in done.output
    if mistake == "an unknown item":
        assert f"did you mean {first}" in done.output
    assert "Traceback" not in done.output


def test_ids_and_titles_are_shown_as_they_are_and_steer_no_terminal() -> None:
    title = "a\x1b[2J \u3000[b]\ud83d [/c]"
    item = {"item_id": "[/i]", "title": title, "score": 1.0}
    file = io.StringIO()
    found = {"user": "[/u]", "history": 1, "round": 1, "passed_over": [], "trained": True, "items": [item]}
    show_recommendation(found, Console(file=file, width=200))
    shown = file.getvalue()
    assert "For user [/u], who knows" in shown
    assert "a\ufffd[2J \u3000[b]\ufffd [/c]" in shown
    shown.encode()


def test_a_history_for_recommending_is_everything(a_run: Path) -> None:
    interactions = of_run(a_run).node.users._interactions
    whole = split.histories(interactions, "all")
    np.testing.assert_array_equal(whole.offsets, interactions.offsets)
    np.testing.assert_array_equal(whole.items, interactions.items)
