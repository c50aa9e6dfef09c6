"""`fedrec tune`: the better half goes on, the last one is the run that its command makes, and the search is counted."""

from __future__ import annotations

import io
import json
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from client_app.answers.app import app as client_app
from commands import tune as tuning
from commands.candidates import Candidate, candidates_of
from commands.local_grid import LocalGrid
from commands.tune import affordable, tune
from federation.sizes import expected
from fedrec.config.compose import compose
from fedrec.config.paths import settle
from fedrec.config.resume import config_in
from fedrec.core.errors import ConfigError, FederationError, RoundError
from server_app.run import run

SHOP = ["dataset.n_users=30", "dataset.n_items=60", "dataset.interactions_per_user=8", "dataset.topics=4"]
SMALL = ["base_table.dim=8", "federation.fraction=0.3", "optim.negatives=10", "strategy.rounds=16"]
AMONG = ["sequences_1mb", "sequences_2mb"]


def tuned(place: Path, *overrides: str, among: list[str] = AMONG) -> tuple[dict[str, Any], str]:
    shop = [] if "dataset=table" in overrides else SHOP
    texts = [*shop, *SMALL, *overrides, f"runs_dir={place}/runs", f"cache_dir={place}/cache", "run_id=t"]
    stream = io.StringIO()
    return tune(texts, among, place, console=Console(file=stream, width=300)), stream.getvalue()


def test_the_chosen_run_is_the_one_that_its_command_makes_and_the_search_costs_what_the_others_moved(
    tmp_path: Path,
) -> None:
    summary, shown = tuned(tmp_path)
    found = summary["tune"]
    assert json.loads((Path(summary["run"]) / "tune.json").read_text()) == found
    tried = {each["experiment"]: each for each in found["candidates"]}
    assert list(tried) == AMONG
    winner = tried.pop(found["experiment"])
    (loser,) = tried.values()
    assert (winner["tried"], loser["tried"]) == (16, 8)
    folders = {loser["experiment"]: tmp_path / f"runs/t-search/{loser['experiment']}/t"}
    folders[found["experiment"]] = tmp_path / "runs/t"
    assert summary["run"] == str(tmp_path / "runs/t")
    assert config_in(tmp_path / "runs/t").runs_dir == tmp_path / "runs"
    lines = {
        name: [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for name, folder in folders.items()
    }
    best = {name: max(line["validation"]["ndcg@10"] for line in lines[name][:8]) for name in AMONG}
    assert best[found["experiment"]] == max(best.values())
    assert shown.count("Data: synthetic") == 1
    validated = [line["bytes_per_user"].get("evaluation", 0) for line in lines[loser["experiment"]]]
    assert found["evaluation"] == loser["evaluation"] == max(validated) > 0
    moved = lines[loser["experiment"]][-1]["bytes_per_user"]["total"]
    assert found["bytes_per_user"] == loser["bytes_per_user"] == moved <= found["budget"]
    assert f"experiment={found['experiment']} suits the data best" in shown
    command = shlex.split(found["command"])
    assert command[:2] == ["fedrec", "train"]
    again = [*command[2:], f"runs_dir={tmp_path}/again", f"cache_dir={tmp_path}/cache", "run_id=again"]
    rerun = run(settle(compose(again, base=None), None), again, LocalGrid(client_app, 2))
    for name in ("test", "validation", "rounds", "best_round"):
        assert rerun[name] == summary[name], name
    assert rerun["bytes_per_user"]["total"] == summary["bytes_per_user"]["total"]


WRONG: dict[str, tuple[list[str], list[str], str]] = {
    "experiment": (["experiment=steady"], AMONG, "of the experiments that --among names"),
    "unknown": ([], ["steadi"], "--among steadi: there is no such experiment; did you mean steady"),
    "twice": ([], ["steady", "steady"], "each once"),
    "patience": (["strategy.patience=1"], AMONG, "itself ends the runs"),
    "no validation": (["evaluation.validation=false"], AMONG, "chooses by validation"),
    "no rounds": (["evaluation.every=0"], AMONG, "chooses by validation"),
    "deployment": (["runtime=deployment", "dataset=table", "dataset.item_table=items.csv"], AMONG, "in a simulation"),
    "accounts": ([], ["central_gaussian"], "for which nothing is charged"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_chosen_is_said_before_anything_is_trained(tmp_path: Path, case: str) -> None:
    overrides, among, said = WRONG[case]
    (tmp_path / "items.csv").write_text("item_id,title\ni,a title\n")
    with pytest.raises(ConfigError, match=said):
        tuned(tmp_path, *overrides, among=among)
    assert not (tmp_path / "runs").exists()


def test_a_run_that_is_there_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "runs/t").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"run_id=t: .*runs/t is there already"):
        tuned(tmp_path)
    assert not (tmp_path / "runs/t-search").exists()
    (tmp_path / "runs/t").rename(tmp_path / "runs/t-search")
    with pytest.raises(ConfigError, match=r"run_id=t: .*runs/t-search is there already"):
        tuned(tmp_path)


def test_a_run_with_patience_has_more_than_any_trial(tmp_path: Path) -> None:
    places = [f"runs_dir={tmp_path}/runs", "run_id=t"]
    found = candidates_of([*SHOP, *places], ["sequences", "sequences_1mb"], tmp_path)
    often = candidates_of([*SHOP, *places, "evaluation.every=5"], ["sequences"], tmp_path)
    patience = [each.config.strategy.patience for each in (*found, *often)]  # type: ignore[attr-defined]
    assert patience == [8, None, None]
    assert found[0].after(8) <= 8 * found[0].config.evaluation.every
    assert [each.config.evaluation.every for each in found] == [37, 81]


def test_a_candidate_that_fails_is_out_of_the_search_and_costs_what_it_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = run

    def failing(config: Any, *given: Any, **more: Any) -> dict[str, Any]:
        if "sequences_1mb" in str(config.runs_dir):
            raise RoundError("it diverged")
        return original(config, *given, **more)

    monkeypatch.setattr(tuning, "run", failing)
    summary, _ = tuned(tmp_path, "evaluation.ks=[10]")
    found = summary["tune"]
    assert found["experiment"] == "sequences_2mb"
    (failed,) = [each for each in found["candidates"] if "failed" in each]
    assert (failed["experiment"], failed["failed"], failed["tried"]) == ("sequences_1mb", "it diverged", 0)
    assert 0 < found["bytes_per_user"] == failed["bytes_per_user"] <= found["budget"]
    monkeypatch.setattr(tuning, "run", lambda *_, **__: (_ for _ in ()).throw(RoundError("all of them")))
    with pytest.raises(FederationError, match="experiment=sequences_1mb: all of them; experiment=sequences_2mb: all"):
        tuned(tmp_path / "again")


def test_a_candidate_that_so_small_a_catalogue_cannot_have_is_out_of_the_search(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody who typed nothing is told of an item vector's length."""
    texts = [*SHOP, "federation.fraction=0.3", "optim.negatives=10", "strategy.rounds=24", "run_id=t"]
    texts += [f"runs_dir={tmp_path}/runs", f"cache_dir={tmp_path}/cache"]
    found = tune(texts, ["recency_1mb", "steady"], tmp_path, console=Console(file=io.StringIO()))["tune"]
    assert found["experiment"] == "steady"
    (failed,) = [each for each in found["candidates"] if "failed" in each]
    assert failed["failed"].startswith("base_table.dim=256: 60 items with text")
    assert (failed["bytes_per_user"], found["bytes_per_user"]) == (0.0, 0.0)
    assert "experiment=recency_1mb is out of the search: base_table.dim=256" in caplog.text


def candidate(name: str, once: int, each: int) -> Candidate:
    phase = SimpleNamespace(rounds=160, up=each, down=each, once=once, whole=once, merge=0, merge_every=0)
    sizes: Any = SimpleNamespace(joining={"setup": 1000}, fraction=1.0, phases=(phase,), exchanges=())
    config: Any = SimpleNamespace(evaluation=SimpleNamespace(every=10))
    return Candidate(name, [], config, Path("/"), sizes)


def test_what_is_expected_counts_what_is_sent_once_to_those_who_are_chosen() -> None:
    one = candidate("one", 5000, 10)
    assert [one.after(parts) for parts in (1, 2, 8, 16)] == [10, 20, 80, 160]
    assert one.planned(2) == 1000 + 5000 + 20 * 20
    one.sizes.fraction = 0.5  # type: ignore[misc]
    assert expected(one.sizes, 2) == 1000 + 0.75 * 5000 + 2 * 0.5 * 20


def test_the_cheapest_is_not_counted_and_what_cannot_be_afforded_is_left_out() -> None:
    cheap, fair, dear = candidate("cheap", 0, 10), candidate("fair", 0, 20), candidate("dear", 90_000, 10)
    assert affordable([cheap, fair, dear], 0, 91_200 + 1_400) == (1, None), "of the first rung, fair and dear"
    assert affordable([cheap, fair, dear], 0, 91_200 + 1_399) == (0, dear)
    assert affordable([cheap, fair], 1, 1_000 + 8 * 400) == (8, None), "then the last that is affordable"
    assert affordable([cheap, fair], 1, 1_000 + 8 * 400 - 1) == (4, None)
    assert affordable([cheap, fair], 0, 1_000 + 8 * 400) == (8, None), "also if they were never tried"
    assert affordable([cheap, fair], 4, 1_000 + 8 * 400 - 1) == (0, None)
