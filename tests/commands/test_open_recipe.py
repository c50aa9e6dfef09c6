"""Where nothing of the recipe is typed, `train` and `simulate` choose it as `tune` does; else they train as typed."""

from __future__ import annotations

import json
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

import fedrec
from commands import candidates, cli, report, simulate, superlink, train, tune
from commands.open_recipe import APART, leaves_recipe_open, names_recipe
from fedrec.config.compose import compose
from fedrec.config.paths import settle
from fedrec.config.schema import RunConfig

OPEN: tuple[list[str], ...] = (
    [],
    ["dataset=ml_100k", "dataset.root=ml", "encoder=sentence_transformer", "base_table.start=random"],
    ["seed=1", "run_id=films", "runs_dir=r", "simulation.nodes=3", "evaluation.ks=[10]", "evaluation.every=5"],
)
CLOSED = (
    *(["experiment=steady"], ["strategy.rounds=30"], ["optim=fast"], ["codec=int8"], ["base_table.dim=64"]),
    *(["federation.fraction=0.5"], ["privacy=central_gaussian"], ["resume=films"], ["runtime=deployment"]),
    *(["evaluation.validation=False"], ["evaluation.every=+0"], ["evaluation.every=0"], ["seed=1", "backbone=sasrec"]),
)


def is_open(overrides: list[str]) -> bool:
    """Of what is typed, in the configuration that validation is on or off in."""
    ranking = [text for text in overrides if text.startswith("evaluation.")]
    return leaves_recipe_open(overrides, compose(ranking, base=None))


@pytest.mark.parametrize("overrides", OPEN)
def test_what_says_nothing_of_training_leaves_the_recipe_open(overrides: list[str]) -> None:
    assert is_open(overrides)


@pytest.mark.parametrize("overrides", CLOSED)
def test_one_part_of_a_recipe_is_enough_to_train_what_is_typed(overrides: list[str]) -> None:
    assert not is_open(overrides)
    assert not is_open(["seed=2", *(text for text in overrides if text != "seed=1")])


def test_whatever_is_apart_is_there() -> None:
    config = compose([], base=None)
    for key in APART:
        attrgetter(key)(config)


@pytest.mark.parametrize("typed", [["dataset.n_users=30"], ["dataset.n_users=30", "optim=fast"]])
def test_the_command_and_the_function_choose_alike_and_say_so(
    typed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, list[str]]] = []

    def tuned(overrides: list[str], among: tuple[str, ...], base: Path, **_: Any) -> dict[str, Any]:
        assert among == tune.CANDIDATES
        assert base == tmp_path
        done.append(("tune", list(overrides)))
        return {"run": str(tmp_path)}

    def trained(config: RunConfig, overrides: list[str], **_: Any) -> dict[str, Any]:
        done.append(("train", [text for text in overrides if not text.startswith(("runs_dir=", "cache_dir="))]))
        return {"run": str(tmp_path)}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tune, "tune", tuned)
    monkeypatch.setattr(train, "train", trained)
    shown = CliRunner().invoke(cli.app, ["train", *typed])
    assert shown.exit_code == 0, shown.output
    with pytest.raises(fedrec.core.errors.FedrecError):  # what stands in for the run has no summary to open
        fedrec.train(*typed)
    how = "train" if "optim=fast" in typed else "tune"
    assert done == [(how, typed), (how, typed)]
    assert ("nothing of the recipe is typed: steady, contexts_1mb" in shown.output) is (how == "tune")
    assert ("trained as typed, on top of the defaults" in shown.output) is (how == "train")


@pytest.mark.parametrize(("typed", "says"), [("experiment=steady", True), ("resume=films", True), ("seed=1", False)])
def test_an_experiment_and_a_run_that_is_resumed_say_what_their_recipe_is(typed: str, says: bool) -> None:
    assert names_recipe(["dataset=ml_100k", typed]) is says


def test_the_line_of_json_has_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "CANDIDATES", ("sequences_1mb", "sequences_2mb"))
    original = tune.tune

    def small(overrides: list[str], *given: Any, **more: Any) -> dict[str, Any]:
        rounds = ["strategy.rounds=4", "base_table.dim=8", "federation.fraction=0.3", "optim.negatives=5"]
        return original([*overrides, *rounds], *given, **more)

    monkeypatch.setattr(tune, "tune", small)
    shop = ["dataset.n_users=30", "dataset.n_items=60", "dataset.interactions_per_user=8", "dataset.topics=4"]
    places = [f"runs_dir={tmp_path}/runs", f"cache_dir={tmp_path}/cache", "run_id=shop"]
    shown = CliRunner().invoke(cli.app, ["train", *shop, *places, "--json"])
    assert shown.exit_code == 0, shown.output
    end = json.loads(shown.stdout.splitlines()[-1])
    assert end["run"] == str(tmp_path / "runs" / "shop")
    assert end["tune"]["experiment"] in tune.CANDIDATES
    assert 0 < end["ceiling"]["ndcg@10"] < 1
    assert f"{end['test']['ndcg@10'] / end['ceiling']['ndcg@10']:.0%} of the ceiling" in end["share"]
    assert end["share"].startswith("NDCG@10 is ")
    overrides = json.loads((tmp_path / "runs/shop/manifest.json").read_text())["overrides"]
    assert overrides[0] == f"experiment={end['tune']['experiment']}"


class NoSuperLink:
    """Stands in for one that would be started."""

    def __enter__(self) -> None:
        done_with.append("superlink")

    def __exit__(self, *_: object) -> None:
        return None


done_with: list[str] = []


@pytest.mark.parametrize(
    "typed", [["dataset.n_users=30"], ["dataset.n_users=30", "optim=fast"], ["evaluation.every=0"]]
)
def test_simulate_chooses_before_it_starts_the_runtime(
    typed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done_with.clear()

    def tuned(overrides: list[str], among: tuple[str, ...], base: Path, **more: Any) -> dict[str, Any]:
        assert (overrides, among, base, more["command"]) == (typed, tune.CANDIDATES, tmp_path, "simulate")
        assert more["finish"].func is simulate.carry_on
        done_with.append("tune")
        return {"run": str(tmp_path)}

    def simulated(*_: Any, **__: Any) -> dict[str, Any]:
        done_with.append("simulate")
        return {"run": str(tmp_path)}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(superlink, "SuperLink", NoSuperLink)
    monkeypatch.setattr(tune, "tune", tuned)
    monkeypatch.setattr(simulate, "simulate", simulated)
    monkeypatch.setattr(report, "show_summary", lambda *_: None)
    shown = CliRunner().invoke(cli.app, ["simulate", *typed])
    assert shown.exit_code == 0, shown.output
    assert done_with == (["tune"] if typed == ["dataset.n_users=30"] else ["superlink", "simulate"])


@pytest.mark.parametrize("tried", [0, 3])
def test_what_was_chosen_is_resumed_where_a_part_of_it_is_done(
    tried: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[RunConfig, list[str]]] = []

    def simulated(config: RunConfig, overrides: list[str], **_: Any) -> dict[str, Any]:
        asked.append((config, overrides))
        return {}

    monkeypatch.setattr(simulate, "simulate", simulated)
    texts = ["run_id=t", f"runs_dir={tmp_path}/runs", f"cache_dir={tmp_path}/cache"]
    config = settle(compose(texts, base=None), None)
    chosen = candidates.Candidate("steady", ["experiment=steady"], config, tmp_path / "runs" / "t", None, round=tried)  # type: ignore[arg-type]
    simulate.carry_on(chosen, Console(), verbose=False)
    ((given, overrides),) = asked
    assert given.resume == ("t" if tried else None)
    resumed = ["resume=t", f"runs_dir={tmp_path}/runs", f"cache_dir={tmp_path}/cache"]
    assert overrides == (resumed if tried else ["experiment=steady"])
