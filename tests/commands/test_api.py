"""The Python interface does what the commands do."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow
import pytest
import torch

import fedrec
from client_app.answers.recommending import recommend as recommended
from commands.kept_run import of_run
from commands.places import RecommendError
from commands.recommend import recommend
from fedrec.core.errors import ConfigError, DataError, FedrecError

SMALL: dict[str, Any] = {
    "strategy": {"rounds": 2, "warmup_rounds": 1},
    "evaluation": {"every": 1, "baselines": False},
    "base_table": {"dim": 8},
    "quiet": True,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def placed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDREC_HOME", str(home))


@pytest.fixture(scope="module")
def clicks() -> pandas.DataFrame:
    rng = np.random.default_rng(0)
    lines = [(user, item, place) for user in range(30) for place, item in enumerate(rng.permutation(40)[:8])]
    return pandas.DataFrame(lines, columns=["user_id", "item_id", "timestamp"])


@pytest.fixture(scope="module")
def films() -> pandas.DataFrame:
    words = [
        "harbour",
        "winter",
        "engine",
        "letter",
        "garden",
        "mirror",
        "river",
        "signal",
        "violet",
        "anchor",
        "ladder",
    ]
    return pandas.DataFrame(
        {"item_id": range(40), "title": [f"Film {n}, {words[n % 7]} {words[n % 11]}" for n in range(40)]}
    )


@pytest.fixture(scope="module")
def run(home: Path, clicks: pandas.DataFrame, films: pandas.DataFrame) -> fedrec.Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDREC_HOME", str(home))
        return fedrec.train(
            "optim=fast", optim={"negatives": 5}, interactions=clicks, items=films, runs_dir=home / "runs", **SMALL
        )


def test_what_suits_frames_is_found_and_trained(home: Path, clicks: pandas.DataFrame, films: pandas.DataFrame) -> None:
    among = ["steady", "one_megabyte"]
    named: dict[str, Any] = {"runs_dir": home / "tuned", "run_id": "t", "optim": {"negatives": 5}}
    found = fedrec.tune(interactions=clicks, items=films, among=among, **named, **SMALL)
    search = json.loads((found.folder / "tune.json").read_text())
    assert [each["experiment"] for each in search["candidates"]] == among
    assert found.folder == home / "tuned" / "t"
    assert found.summary["rounds"] == 2


def test_a_run_is_trained_from_frames_and_opened_from_its_folder(run: fedrec.Run, clicks: pandas.DataFrame) -> None:
    again = fedrec.Run(run.folder)
    assert again.summary == run.summary
    assert again.summary["test"]["users"] == 30
    assert again.metrics["round"].tolist() == again.curve["round"].tolist() == [1, 2]
    assert again.metrics["validation.ndcg@10"].tolist() == again.curve["ndcg@10"].tolist()
    assert sorted(map(int, again.users)) == list(range(30))
    assert again.items["item_id"].tolist() == [str(n) for n in range(40)]
    assert again.items["title"][7] == "Film 7, harbour signal"
    assert set(again.items["item_id"][again.items["eligible"]].map(int)) == set(clicks["item_id"])


def test_users_get_what_the_command_gives_them(run: fedrec.Run, clicks: pandas.DataFrame) -> None:
    found = run.recommend(["17", "3"], n=4)
    assert found["user_id"].tolist() == ["17"] * 4 + ["3"] * 4
    assert found["rank"].tolist() == [1, 2, 3, 4] * 2
    for user, mine in found.groupby("user_id"):
        alone = recommend(str(run.folder), None, str(user), None, 4)["items"]
        assert mine["item_id"].tolist() == [item["item_id"] for item in alone]
        assert mine["title"].tolist() == [item["title"] for item in alone]
        assert mine["score"].tolist() == pytest.approx([item["score"] for item in alone], rel=1e-6)
    everybody = run.recommend(n=40)
    known = clicks.groupby("user_id")["item_id"].nunique()
    expected = {str(user): clicks["item_id"].nunique() - count for user, count in known.items()}
    assert everybody.groupby("user_id").size().to_dict() == expected


def test_newcomers_get_what_the_command_gives_them(run: fedrec.Run) -> None:
    histories = {"she": ["3", "9", "3"], "he": np.array(["11"])}
    found = run.recommend_from(histories, n=5)
    for name, items in histories.items():
        alone = recommend(str(run.folder), None, None, ",".join(items), 5)["items"]
        assert found[found["user_id"] == name]["item_id"].tolist() == [item["item_id"] for item in alone]


def test_similar_items_are_those_of_the_vectors(run: fedrec.Run) -> None:
    vectors = run.item_vectors()
    assert vectors.shape == (40, 8)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = run.similar_items("5", n=3)
    order = [n for n in np.argsort(-(units @ units[5])).tolist() if n != 5 and run.items["eligible"][n]]
    assert found["item_id"].tolist() == [str(n) for n in order[:3]]
    assert found["similarity"].tolist() == pytest.approx((units @ units[5])[order[:3]].tolist(), rel=1e-5)


def test_lists_are_those_that_were_ranked_at_test(run: fedrec.Run, clicks: pandas.DataFrame) -> None:
    source = of_run(run.folder)
    users, positives = source.node.users.held_out(source.node.users.evaluated("test"), "test")
    lists = recommended(source.node, source.model_of(0), users, 10, of="test").rows.numpy()
    assert (lists == positives[:, None]).any(1).mean() == pytest.approx(run.summary["test"]["hr@10"])
    for mine, start, end in zip(lists, users.offsets, users.offsets[1:], strict=False):
        assert not np.isin(mine, users.items[start:end]).any()

    found = run.beyond_accuracy([5, 10])
    assert found.index.tolist() == [5, 10]
    assert found["coverage"][10] == len(np.unique(lists)) / clicks["item_id"].nunique()
    told = run.summary["beyond_accuracy"]
    assert told["users"] == 30
    assert found.loc[10].to_dict() == pytest.approx({name: told[f"{name}@10"] for name in found.columns})
    assert 0 < found["diversity"][10] < 2
    compared = fedrec.compare([run], ceiling=0.5)
    assert compared["beyond_accuracy.gini"][0] == told["gini@10"]


def test_what_lists_are_like_is_left_out_if_nobody_asks(home: Path, clicks: pandas.DataFrame) -> None:
    small = {**SMALL, "evaluation": {**SMALL["evaluation"], "beyond_accuracy": False}}
    made = fedrec.train("base_table.start=random", interactions=clicks, runs_dir=home / "silent", **small)
    assert "beyond_accuracy" not in made.summary
    assert np.isnan(made.beyond_accuracy()["diversity"][10])  # there are no texts to tell items apart by


def test_runs_are_compared_as_lines_of_a_frame(run: fedrec.Run) -> None:
    found = fedrec.compare([run], ceiling=0.5)
    assert found["run"].tolist() == [run.folder.name]
    assert found["test.ndcg@10"][0] == run.summary["test"]["ndcg@10"]
    assert found["bytes_per_user.total"][0] == run.summary["bytes_per_user"]["total"]


def test_the_same_table_from_another_library_is_the_same_file(clicks: pandas.DataFrame, home: Path) -> None:
    from commands.arrow_frames import kept_frame

    one = kept_frame(pyarrow.table(clicks).replace_schema_metadata(), "interactions")
    two = kept_frame(pyarrow.table(clicks).replace_schema_metadata(), "interactions")
    other = kept_frame(pyarrow.table(clicks[1:]).replace_schema_metadata(), "interactions")
    assert one == two != other
    assert one.parent == home / "cache" / "frames"


def test_the_callers_threads_stay_as_they_were(run: fedrec.Run) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        fedrec.Run(run.folder).recommend(["3"], n=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_sections_are_overrides(home: Path) -> None:
    from commands.api import _overrides

    given = {
        "strategy": {"rounds": 2},
        "evaluation": {"ks": [5, 10], "baselines": False},
        "run_id": None,
        "dataset": {"text_columns": ["title", "a b"], "root": Path("/it's here")},
        "optim": {"lr": 1e-05, "negatives": np.int64(3), "half_life": np.float64(0.5), "private_anew": np.bool_(True)},
    }
    assert [text for name, value in given.items() for text in _overrides(name, value)] == [
        "strategy.rounds=2",
        "evaluation.ks=[5,10]",
        "evaluation.baselines=false",
        "run_id=null",
        "dataset.text_columns=[title,'a b']",
        "dataset.root='/it\\'s here'",
        "optim.lr=1e-05",
        "optim.negatives=3",
        "optim.half_life=0.5",
        "optim.private_anew=true",
    ]


def test_the_page_does_what_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clicks: pandas.DataFrame, films: pandas.DataFrame
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
    shown = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    others = {11: 50, 12: 181}
    clicks.replace({"item_id": others}).to_csv("clicks.csv", index=False)
    films.assign(genres="drama").replace({"item_id": others}).to_csv("items.csv", index=False)
    names: dict[str, Any] = {}
    small = "strategy={'rounds': 2, 'warmup_rounds': 1}, base_table={'dim': 8}, evaluation={'baselines': False}"
    for block in shown:
        block = block.replace('strategy={"rounds": 30}', f"{small}, dataset={{'n_users': 40, 'n_items': 60}}")
        block = block.replace("interactions=clicks", f"interactions=clicks, {small}")
        exec(block, names)  # the documented lines, as a reader would type them
    assert names["run"].summary["test"]["users"] == 30
    assert names["vectors"].shape == (len(names["ids"]), 8)


def test_mistakes_are_said_plainly(run: fedrec.Run, clicks: pandas.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(RecommendError, match="none of the 30 users here has the id nobody"):
        run.recommend(["3", "nobody"])
    with pytest.raises(RecommendError, match="history of me: there is no item 99"):
        run.recommend_from({"me": ["3", "99"]})
    with pytest.raises(RecommendError, match="history of me: expected the ids of items, it is empty"):
        run.recommend_from({"me": []})
    with pytest.raises(RecommendError, match="there is no item 99"):
        run.similar_items("99")
    with pytest.raises(RecommendError, match="there is no finished run"):
        fedrec.Run(tmp_path)
    with pytest.raises(DataError, match=r"expected a table that speaks Arrow, such as a pandas, .*, got list"):
        fedrec.train(interactions=[1, 2], quiet=True)
    with pytest.raises(ConfigError, match="items without interactions"):
        fedrec.train(items=clicks, quiet=True)
    with pytest.raises(ConfigError, match="dataset is given, and a table as well"):
        fedrec.train("dataset=ml_1m", interactions=clicks, quiet=True)
    with pytest.raises(ConfigError, match=r"strategy\.rounds=0"):
        fedrec.train(strategy={"rounds": 0}, quiet=True)
    for letters in (
        lambda: run.recommend("12"),
        lambda: run.recommend_from({"me": "12"}),
        lambda: fedrec.compare("runs"),
    ):
        with pytest.raises(RecommendError, match="expected a list, got the one text"):
            letters()
    for count in (0, -1, 2.5):
        for asked in (lambda n=count: run.recommend(n=n), lambda n=count: run.similar_items("5", n=n)):
            with pytest.raises(RecommendError, match=f"n={count}: expected a whole number, 1 or more"):
                asked()
    with pytest.raises(RecommendError, match="group north: the run has no groups"):
        run.item_vectors("north")
    with pytest.raises(FedrecError, match="runs: expected at least one"):
        fedrec.compare([])
    with pytest.raises(ConfigError, match=r"optim\.lr: expected a number, a text"):
        fedrec.train(optim={"lr": object()}, quiet=True)
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        fedrec.trian  # noqa: B018 - a misspelt name


def test_importing_fedrec_imports_nothing_heavy() -> None:
    script = "import fedrec, sys; print(*[name for name in ('torch', 'pandas', 'commands') if name in sys.modules])"
    root = str(Path(fedrec.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == []
    assert {"Run", "train", "tune", "compare"} <= set(dir(fedrec))
