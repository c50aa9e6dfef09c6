"""Baselines: a known answer, the ranking of the federation, early stopping, and every kind through its folder."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from client_app.answers.app import app as client_app
from client_app.stores.store import PrivateStore
from client_app.training.cohort import CohortEngine
from client_app.training.engine import GlobalModel
from client_app.training.oracle import OracleEngine
from commands.baseline.central import CausalTraining, CentralTraining, PooledHistory
from commands.baseline.command import Kind, baseline
from commands.baseline.local import user_alone
from commands.baseline.world import World
from commands.local_grid import LocalGrid
from commands.progress import RunProgress
from fedrec.backbones.history import PlainHistory
from fedrec.config.compose import compose
from fedrec.config.paths import settle
from fedrec.config.schema import RunConfig
from fedrec.core.errors import FedrecError
from fedrec.core.rng import derive
from fedrec.core.tensors import content_digest
from fedrec.stages.chain import plain_stages
from fedrec.stages.limits import Limits
from server_app.run import run

SMALL = [
    "dataset.n_users=50",
    "dataset.n_items=60",
    "dataset.interactions_per_user=10.0",
    "dataset.topics=5",
    "base_table.dim=8",
    "strategy.rounds=3",
    "strategy.warmup_rounds=1",
    "federation.fraction=0.3",
    "evaluation.every=1",
]
FULL = [*(text for text in SMALL if "warmup" not in text), "strategy=full"]
TINY = [*(text for text in SMALL if "n_users" not in text), "dataset.n_users=20", "optim.solve_epochs=2"]

Compose = Callable[..., tuple[RunConfig, list[str]]]


@pytest.fixture
def composed(tmp_path: Path) -> Compose:
    """A configuration whose folders are below `tmp_path`, and its overrides."""

    def go(*overrides: str) -> tuple[RunConfig, list[str]]:
        texts = [*overrides, f"runs_dir={tmp_path}/runs", f"cache_dir={tmp_path}/cache"]
        return settle(compose(texts, base=None), None), texts

    return go


def silent() -> Console:
    return Console(file=io.StringIO())


def world(config: RunConfig) -> World:
    assert config.cache_dir is not None
    return World.read(config, config.cache_dir, RunProgress(silent()))


def lines(summary: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(summary["run"]) / "metrics.jsonl").read_text().splitlines()]


# ---- central ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkerboard(tmp_path: Path) -> list[str]:
    """Users with an even number like the 20 even items and nothing else, the others the odd; each knows 15 of them."""
    rng = np.random.default_rng(0)
    rows = [
        (user, 2 * item + user % 2, time)
        for user in range(60)
        for time, item in enumerate(rng.permutation(20)[:15].tolist())
    ]
    path = tmp_path / "board.csv"
    path.write_text("user_id,item_id,timestamp\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows))
    return ["dataset=table", f"dataset.interactions={path}", "base_table.start=random", "base_table.dim=8"]


@pytest.mark.parametrize("recipe", [["optim=fast", "optim.negatives=4"], ["optim=paper", "optim.solve_epochs=2"]])
def test_central_training_solves_the_checkerboard(
    checkerboard: list[str], composed: Compose, recipe: list[str]
) -> None:
    # Of a user's 26 candidates at test, 6 are of its colour: they should come first, the held-out one among them.
    central = ["central.lr=0.02", "central.epochs=12", "central.batch=64", "central.patience=0"]
    config, texts = composed(*checkerboard, *central, "strategy=full", *recipe, "evaluation.ks=[6]")
    summary = baseline("central", config, texts, console=silent())
    assert summary["test"]["hr@6"] > 0.9
    assert summary["baselines"]["random"]["hr@6"] == pytest.approx(6 / 26)
    assert lines(summary)[-1]["loss"] < lines(summary)[0]["loss"] / 3


@pytest.mark.parametrize(
    "overrides",
    [
        FULL,
        [*SMALL, "embedding.rank=2", "evaluation.sampled_negatives=20"],
        [*FULL, "optim.private_anew=true", "optim.private_optimiser=sgd", "optim.solve_lr=1.0"],
    ],
)
def test_tensors_rank_here_as_they_do_in_a_federation(overrides: list[str], composed: Compose) -> None:
    once = [text for text in overrides if "evaluation.every" not in text]  # the last round is then the best, too
    config, texts = composed("optim=fast", *once, "evaluation.every=0", "run_id=r", "optim.negatives=20")
    summary = run(config, texts, LocalGrid(client_app, 2))
    folder, here = Path(summary["run"]), world(config)
    points = (folder / "curve.csv").read_text().splitlines()
    assert [point.split(",")[0] for point in points] == ["round", "3"]
    assert points[-1].split(",")[-2:] == [
        str(summary["bytes_per_user"]["total"]),
        str(summary["validation"]["ndcg@10"]),
    ]
    kept = load_file(folder / "checkpoints" / "round-000003.safetensors")
    trainable = {name: kept[f"trainable.{name}"] for name in here.model.trainable}
    frozen = {name: kept[f"frozen.{name}"] for name in here.model.frozen}
    cohort, _ = here.users.held_out(here.users.evaluated("test"), "test")
    store = PrivateStore(folder / "state", here.setup.run_key, here.model.backbone.private, synced=False)
    private, found = store.load(cohort.keys, 4)
    assert 0 < found.sum() < len(found)
    new = torch.from_numpy(~found)
    for name, start in here.private(cohort).items():
        private[name][new] = start[new]
    model = GlobalModel(here.model, trainable, frozen)
    metrics = here.means(here.sums(model, private, here.users.evaluated("test"), "test", 3), "test")
    counts = {"cold_users", "users", "diverged_users"}
    assert metrics.keys() == summary["test"].keys()
    for name in metrics.keys() - counts:
        assert metrics[name] == pytest.approx(summary["test"][name], rel=1e-12), name
    assert metrics["users"] == summary["test"]["users"] == 50


def test_the_best_epoch_by_validation_is_tested_and_patience_ends_the_training(composed: Compose) -> None:
    config, texts = composed(*FULL, "central.patience=2", "central.lr=0.05", "central.batch=256", "central.epochs=40")
    summary = baseline("central", config, texts, console=silent())
    records = lines(summary)
    values = [record["validation"]["ndcg@10"] for record in records]
    assert summary["best_round"] == 1 + values.index(max(values))
    assert summary["rounds"] == len(values) == summary["best_round"] + 2 < 40
    assert summary["validation"] == records[summary["best_round"] - 1]["validation"]
    folder = Path(summary["run"])
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert json.loads((folder / "manifest.json").read_text())["baseline"] == "central"
    assert (folder / "curve.csv").read_text().splitlines()[1].split(",") == ["1", *[""] * 5, str(values[0])]
    # The state after the best epoch, made again without those that came after it.
    again, texts = composed(*[*FULL, "central.lr=0.05", "central.batch=256", "central.patience=0"], "run_id=again")
    best = baseline("central", *limited(again, texts, summary["best_round"]), console=silent())
    assert best["test"] == summary["test"]


def test_the_rate_is_halved_where_training_would_end(composed: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    epoch = CentralTraining.epoch

    def watched(self: CentralTraining, number: int) -> float:
        rates.append(self._adam.param_groups[0]["lr"])
        return epoch(self, number)

    monkeypatch.setattr(CentralTraining, "epoch", watched)
    given = [*FULL, "central.lr=0.05", "central.batch=256", "central.epochs=60", "central.patience=2"]
    config, texts = composed(*given, "central.halvings=2")
    summary = baseline("central", config, texts, console=silent())
    values = [record["validation"]["ndcg@10"] for record in lines(summary)]
    expected, since, rate = [], 0, 0.05
    for number in range(1, len(values) + 1):
        expected.append(rate)
        if values[number - 1] > max(values[: number - 1], default=-1.0):
            since = number
        elif number - since == 2:
            since, rate = number, rate / 2
    assert rates == expected
    assert rate == 0.05 / 8, "of three stops two halve it, and the last ends the training"
    assert summary["best_round"] == 1 + values.index(max(values))


def test_without_validation_central_training_takes_all_its_epochs_and_those_items_too(composed: Compose) -> None:
    config, texts = composed(*FULL, "evaluation.validation=false", "central.epochs=4", "central.patience=1")
    summary = baseline("central", config, texts, console=silent())
    assert (summary["rounds"], summary["best_round"], summary["validation"]) == (4, 4, {})
    here = world(config)
    examples = len(here.users.training(np.arange(len(here.users))).items)
    assert examples == len(here.dataset.interactions.items) - len(here.users.evaluated("test"))
    alone = baseline("local", *composed(*TINY, "evaluation.validation=false", "local.rounds=1"), console=silent())
    assert (alone["validation"], alone["test"]["users"]) == ({}, 20)


def limited(config: RunConfig, texts: list[str], epochs: int) -> tuple[RunConfig, list[str]]:
    texts = [*texts, f"central.epochs={epochs}"]
    return settle(compose(texts, base=None), None), texts


@pytest.mark.parametrize(
    "model",
    [
        ["backbone=fedncf", "backbone.dropout=0.2", "embedding=hash_senet"],
        ["backbone=pfedrec", "embedding=rqvae", "embedding.codes=8"],
        ["backbone=fedpergnn", "embedding=lora"],
        ["backbone=fedmf", "embedding=lora", "embedding.variant=C"],
        ["backbone=recency", "backbone.maps=true", "embedding=lora"],
        ["backbone=gru4rec", "backbone.dropout=0.2", "embedding=hash", "optim=fast", "optim.window=5"],
    ],
)
def test_any_backbone_and_embedding_learn_and_leave_the_base_alone(model: list[str], composed: Compose) -> None:
    made = world(composed(*SMALL, *model, "central.batch=128", "central.lr=0.01")[0])
    training = (CausalTraining if made.model.backbone.causal else CentralTraining)(made)
    frozen, before = content_digest(training.model.frozen), training.copies()
    losses = [training.epoch(number) for number in (1, 2, 3)]
    assert losses[2] < losses[0]
    assert content_digest(training.model.frozen) == frozen
    after = training.copies()
    for old, new in ((before[0].trainable, after[0].trainable), (before[1], after[1])):
        assert not [name for name in old if torch.equal(old[name], new[name])]


def test_a_causal_model_learns_the_loss_that_its_users_would_have(composed: Compose) -> None:
    """Of everybody at once, before the first step: the mean over interactions of what the cohort engine reports."""
    values = ["backbone=sasrec", "optim=fast", "optim.window=7", "optim.window_placement=latest"]
    made = world(composed(*SMALL, *values, "central.batch=100000", "central.lr=1e-9", "optim.negatives=400")[0])
    training = CausalTraining(made)
    central = training.epoch(1)
    model = made.start(None)
    cohort = made.users.training(np.arange(len(made.users)))
    engine = CohortEngine(made.recipe, made.sampler, plain_stages(Limits(7, 1e9)))
    update = engine.train(model, cohort, {}, seed=1).update
    assert central == pytest.approx(update.loss / update.weight, rel=0.03), "other negatives, and many"


def test_what_batches_of_few_items_read_are_the_vectors_of_the_whole_table(composed: Compose) -> None:
    training = CentralTraining(world(composed(*FULL)[0]))
    items = torch.tensor([[3, 1], [2, 3]])
    assert items.numel() < 60 < torch.arange(120).numel()
    assert torch.equal(training._vectors(items), training._vectors(items.repeat(30, 1))[:2])


def test_a_pooled_history_is_that_of_each_user() -> None:
    table, weights = torch.randn(9, 4, generator=torch.Generator().manual_seed(1)), torch.arange(9.0)
    items, offsets = torch.tensor([1, 5, 5, 8, 0, 2]), torch.tensor([0, 4, 6])
    pooled = PooledHistory(items, offsets, table)
    for user, own in enumerate((items[:4], items[4:])):
        plain = PlainHistory(own, table[own])
        assert pooled.length[user] == plain.length
        assert pooled.total(weights)[user] == plain.total(weights)
        for weighed in (None, weights):
            torch.testing.assert_close(pooled.sum(weighed)[user], plain.sum(weighed))


def test_a_model_that_diverges_says_what_to_lower(composed: Compose) -> None:
    config, texts = composed(*FULL, "central.lr=1e29", "run_id=r")
    with pytest.raises(FedrecError, match=r"diverged|NaN|finite"):
        baseline("central", config, texts, console=silent())
    assert config.runs_dir is not None
    assert "the baseline has failed" in (config.runs_dir / "r" / "log.txt").read_text()


# ---- the others ------------------------------------------------------------------------------------------------------


def test_a_user_alone_takes_the_recipes_rounds_with_nobody_elses_help(composed: Compose) -> None:
    here = world(composed(*FULL, "local.rounds=2")[0])
    start, slot = here.start(None), np.array([7])
    model, private = user_alone(here, start, slot)
    engine = OracleEngine(here.recipe, here.sampler, plain_stages(Limits(1, float("inf"))))
    cohort, slow = here.users.training(slot), start
    own, state = here.private(cohort), {}
    for round in (1, 2):
        update, own, taken = engine.train(slow, cohort, own, derive(here.secret, "train", round))
        assert taken.all()
        moved, state = here.recipe.server_update(slow.trainable, update.total, state)
        slow = GlobalModel(slow.model, moved, slow.frozen)
    torch.testing.assert_close(model.trainable, slow.trainable)
    torch.testing.assert_close(private, own)
    assert content_digest(model.trainable) != content_digest(start.trainable)


@pytest.mark.parametrize("kind", ["local", "content", "popularity", "random"])
def test_every_kind_has_a_folder_and_the_metrics_of_all_users(kind: Kind, composed: Compose) -> None:
    config, texts = composed(*TINY, "run_id=r", "local.rounds=1", "evaluation.sampled_negatives=20")
    summary = baseline(kind, config, texts, console=silent())
    assert summary["baseline"] == kind
    for split in ("test", "validation"):
        assert summary[split].keys() >= {"ndcg@10", "hr@10", "sampled20/ndcg@10", "mrr"}
        assert summary[split]["users"] == 20
    assert lines(summary)[0]["validation"] == summary["validation"]
    assert "bytes_per_user" not in summary
    member = summary.get("member")
    assert member in {"local": [None], "content": ["content_mean", "content_last"]}.get(kind, [kind])
    for name, value in summary["baselines"].get(member, {}).items():
        assert summary["test"][name] == value
    with pytest.raises(FedrecError, match=r"already holds a run|has ended"):
        baseline(kind, config, texts, console=silent())


def test_content_needs_texts(composed: Compose) -> None:
    config, texts = composed(*SMALL, "base_table.start=random")
    with pytest.raises(FedrecError, match="reads no item texts"):
        baseline("content", config, texts, console=silent())


def test_neither_a_deployment_nor_what_is_resumed_has_baselines(composed: Compose) -> None:
    config, texts = composed(*SMALL)
    with pytest.raises(FedrecError, match="everybody's interactions in one place"):
        baseline("random", dataclasses.replace(config, runtime="deployment"), texts, console=silent())
    with pytest.raises(FedrecError, match="a baseline is not resumed"):
        baseline("random", dataclasses.replace(config, resume="r"), texts, console=silent())


def test_the_baselines_are_those_of_a_federated_run(composed: Compose) -> None:
    federated = run(*composed(*SMALL, "run_id=r"), LocalGrid(client_app, 2))["baselines"]
    config, texts = composed(*SMALL, "run_id=b")
    found = baseline("random", config, texts, console=silent())["baselines"]
    assert found.keys() == federated.keys() == {"random", "popularity", "content_mean", "content_last"}
    for name, metrics in federated.items():
        assert {key: found[name][key] for key in metrics} == metrics
