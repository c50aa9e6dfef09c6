"""The best round by validation: its model is tested and recommended from, and the run ends when none is better."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client_app.answers.app import app as client_app
from client_app.stores import store
from client_app.stores.last_model import kept_models, read_model
from commands.local_grid import LocalGrid
from commands.recommend import recommend
from commands.split import split
from federation.best_round import BestRound, RoundChoice
from fedrec.config.compose import compose
from fedrec.config.paths import settle
from server_app.resuming import prepare
from server_app.run import run
from server_app.run_folder import RunFolder

Federate = Callable[..., Any]

HASTY = ["strategy.rounds=6", "evaluation.every=1", "optim.lr=0.3"]
"""Steps so long that a run soon gets worse: its third round is the best, of which one is no warm-up."""
MERGING = ["strategy.rounds=6", "evaluation.every=1", "optim=fast", "optim.server.lr=0.2"]
MERGING += ["strategy.warmup_rounds=1", "strategy.merge_every=1"]
BEST = 3


def values(outcome: Any) -> list[float]:
    return [record["validation"]["ndcg@10"] for record in outcome.metrics]


@pytest.mark.parametrize("overrides", [HASTY, MERGING], ids=["private tensors", "merges"])
def test_its_model_is_tested_and_recommended_as_if_the_run_had_ended_there(
    federate: Federate, overrides: list[str]
) -> None:
    whole = federate(*overrides)
    assert values(whole).index(max(values(whole))) == BEST - 1
    ended = federate(*overrides[1:], f"strategy.rounds={BEST}")
    assert (whole.summary["best_round"], whole.summary["rounds"]) == (BEST, 6)
    assert "round 3, with the best validation, not of the last, 6" in whole.summary["chosen"]
    assert whole.summary["validation"] == whole.metrics[BEST - 1]["validation"]
    assert whole.summary["test"] == pytest.approx(ended.summary["test"], abs=1e-6)
    assert whole.summary["bytes_per_user"]["total"] == whole.metrics[-1]["bytes_per_user"]["total"]
    assert whole.summary["merges"] == whole.metrics[-1]["merges"]
    mine, theirs = (recommend(str(outcome.folder), None, "u07", None, 10) for outcome in (whole, ended))
    assert mine["round"] == BEST
    assert [item["item_id"] for item in mine["items"]] == [item["item_id"] for item in theirs["items"]]


def test_patience_ends_the_run_whatever_the_layout_and_however_rankings_travel(federate: Federate) -> None:
    one = federate(*HASTY, "strategy.patience=2", "checkpoint_every=1", nodes=1)
    many = federate(*HASTY, "strategy.patience=2", "checkpoint_every=0", nodes=7)
    for outcome in (one, many):
        assert (outcome.summary["rounds"], outcome.summary["best_round"]) == (BEST + 2, BEST)
        assert "the run ended after 5 of 6 rounds, because the last 2 validations" in outcome.summary["chosen"]
        assert [record["round"] for record in outcome.metrics] == [1, 2, 3, 4, 5]
    assert one.summary["test"] == pytest.approx(many.summary["test"], abs=1e-6)
    assert prepare(RunFolder(many.folder)).round == BEST + 2, "the last checkpoint is of the last round"


class Killed(BaseException):
    """The process ends here."""


class Mortal(LocalGrid):
    """Is killed before it delivers a message."""

    def __init__(self, deliveries: int) -> None:
        super().__init__(client_app, 2)
        self.left = deliveries

    def push_messages(self, messages: Any) -> Any:
        self.left -= 1
        if not self.left:
            raise Killed
        return super().push_messages(messages)


def test_a_run_that_is_resumed_chooses_and_stops_as_if_it_had_not_been(tmp_path: Path) -> None:
    texts = [*HASTY, "strategy.patience=2", "checkpoint_every=2"]
    texts += ["dataset.n_users=60", "dataset.n_items=100", "dataset.interactions_per_user=10.0", "dataset.topics=5"]
    texts += ["dataset.skew=0.7", "dataset.noise=0.1", "dataset.visits=0.0", "dataset.drift=0.0"]
    texts += ["base_table.dim=8", "embedding.rank=2", "strategy.warmup_rounds=2", "optim.solve_epochs=3"]
    texts += ["federation.fraction=0.3", "run_id=r", f"cache_dir={tmp_path}/cache"]
    grid = Mortal(10**6)
    whole = run(settled(texts, tmp_path / "whole"), texts, grid)
    assert (whole["best_round"], whole["rounds"]) == (BEST, BEST + 2)
    sent = 10**6 - grid.left
    for killed in (sent - 1, sent):  # in the last round, after the checkpoint of the fourth; and before the test
        place = tmp_path / f"killed-{killed}"
        with pytest.raises(Killed):
            run(settled(texts, place), texts, Mortal(killed))
        again = ["resume=r", f"runs_dir={place}"]
        summary = run(settle(compose(again, base=None), None), again, Mortal(10**6))
        for name in ("test", "validation", "best_round", "rounds", "chosen", "merges", "bytes_per_user"):
            assert summary[name] == whole[name], name


def test_devices_keep_what_the_best_round_of_a_kept_checkpoint_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first round is the best until the ninth is; the run is killed after that, and goes on from the eighth."""
    late = True
    monkeypatch.setattr(store, "_FEW", 1)  # so that what is not needed is dropped at once
    monkeypatch.setattr(
        BestRound, "value", property(lambda best: 9.0 if late and best.round == 9 else -float(best.round))
    )
    texts = ["strategy.rounds=16", "evaluation.every=1", "strategy.patience=null", "strategy.warmup_rounds=1"]
    texts += ["dataset.n_users=40", "dataset.n_items=60", "dataset.interactions_per_user=10.0", "dataset.topics=5"]
    texts += ["base_table.dim=8", "embedding.rank=2", "optim.solve_epochs=3", "federation.fraction=0.8"]
    texts += ["checkpoint_every=8", "checkpoints_kept=1", "run_id=r", f"cache_dir={tmp_path}/cache"]
    grid = Mortal(10**6)
    run(settled(texts, tmp_path / "whole"), texts, grid)
    with pytest.raises(Killed):
        run(settled(texts, tmp_path / "cut"), texts, Mortal(10**6 - grid.left - 2))
    assert recommend(f"{tmp_path}/cut/r", None, "u01", None, 3)["round"] == 1
    late = False
    uninterrupted = run(settled(texts, tmp_path / "plain"), texts, Mortal(10**6))
    again = ["resume=r", f"runs_dir={tmp_path}/cut"]
    summary = run(settle(compose(again, base=None), None), again, Mortal(10**6))
    assert summary["best_round"] == uninterrupted["best_round"] == 1
    assert summary["test"] == uninterrupted["test"]


def settled(texts: list[str], place: Path) -> Any:
    return settle(compose([*texts, f"runs_dir={place}"], base=None), None)


def test_a_site_keeps_the_best_rounds_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(BestRound, "value", property(lambda best: -best.round))
    shop = ["dataset.n_users=20", "dataset.n_items=40", "dataset.interactions_per_user=8"]
    split(settled(shop, tmp_path), 1, tmp_path / "sites")
    items, clicks = (next((tmp_path / "sites").rglob(name)) for name in ("items*", "interactions*"))
    texts = ["runtime=deployment", "dataset=table", f"dataset.item_table={items}", "run_id=d", "simulation.nodes=1"]
    texts += ["base_table.dim=4", "strategy.rounds=3", "strategy.warmup_rounds=1", "evaluation.every=1"]
    texts += ["federation.fraction=1.0", "strategy.patience=null", f"cache_dir={tmp_path}/cache"]
    site = {"interactions": str(clicks), "state-dir": f"{tmp_path}/device"}
    summary = run(settled(texts, tmp_path / "runs"), texts, LocalGrid(client_app, [site]))
    assert (summary["best_round"], summary["rounds"]) == (1, 3)
    (kept,) = kept_models(tmp_path / "device")
    assert read_model(kept)[0].round == 1
    listed = recommend(None, f"{tmp_path}/device", None, "i01,i02", 5)
    assert (listed["round"], len(listed["items"])) == (1, 5)


def validated(round: int, value: float) -> BestRound:
    return BestRound(round, {"ndcg@10": value, "mrr": 1.0}, {})


def test_of_equal_rounds_the_last_is_the_best_and_no_gain() -> None:
    choice = RoundChoice(on=True, patience=3)
    seen = []
    for round, value in enumerate([0.1, 0.2, 0.2 + 1e-12, 0.1, 0.3, 0.2], 1):
        choice.compare(validated(round, value))
        assert choice.best is not None
        seen.append((choice.best.round, choice.left))
    assert seen == [(1, 3), (2, 3), (3, 2), (3, 1), (5, 3), (5, 2)]
    off = RoundChoice(on=False, patience=1)
    off.compare(validated(1, 0.1))
    assert (off.best, off.left) == (None, None)
