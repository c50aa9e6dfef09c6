"""Statistics as baselines: bounded parts of users, noise for a budget, and the ledger before each release."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from commands.baseline.command import baseline
from commands.baseline.statistics import Releases, noise_plan, statistics
from commands.baseline.world import World
from fedrec.config.compose import compose
from fedrec.config.paths import settle
from fedrec.core.errors import BudgetError, ConfigError
from fedrec.privacy.accounting import Sampled, epsilon_of
from server_app.watching import Silent

SHOP = [
    "dataset.n_users=60",
    "dataset.n_items=50",
    "dataset.interactions_per_user=12.0",
    "dataset.topics=5",
    "base_table.dim=8",
    "statistics.items=30",
    "statistics.factors=10",
    "base_table.start=random",
]
CENTRAL = "privacy=central_gaussian"


def config_of(tmp_path: Path, *overrides: str) -> Any:
    places = [f"runs_dir={tmp_path}/runs", f"cache_dir={tmp_path}/cache"]
    chosen = {text.partition("=")[0]: text for text in [*SHOP, *overrides, *places]}
    return settle(compose(list(chosen.values()), base=None), None)


def world_of(tmp_path: Path, *overrides: str) -> World:
    config = config_of(tmp_path, *overrides)
    return World.read(config, config.cache_dir, Silent())


def carried(tmp_path: Path, kind: Any, *overrides: str) -> dict[str, Any]:
    console = Console(file=io.StringIO())
    return baseline(kind, config_of(tmp_path, *overrides), list(overrides), console=console)


def releases_of(config: Any, secret: int, folder: Path) -> Releases:
    return Releases(config, noise_plan("popularity", config), secret, folder)


def by_hand(world: World) -> np.ndarray:
    """The sum over users of their scaled co-occurrences of all items, one pair after the other."""
    size, settings = world.setup.n_items, world.config.statistics
    total = np.zeros((size, size))
    cohort = world.users.training(np.arange(len(world.users)))
    for start, end in zip(cohort.offsets, cohort.offsets[1:], strict=False):
        mine, history = np.zeros((size, size)), cohort.items[start:end]
        for place, item in enumerate(history):
            for lag, other in enumerate(history[place + 1 : place + 1 + settings.lags]):
                mine[min(item, other), max(item, other)] += settings.lag_decay**lag * (item != other)
        if mine.any():
            total += mine / np.linalg.norm(mine)
    return total + total.T


def test_co_occurrences_are_those_of_the_histories(tmp_path: Path) -> None:
    world = world_of(tmp_path, "statistics.items=50", "statistics.factors=50")
    counted = np.bincount(world.users.training(np.arange(60)).items, minlength=50)
    found, ledger = statistics("co_occurrence", world, None, tmp_path)
    assert ledger is None
    matrix = by_hand(world)
    cohort = world.users.training(np.arange(60))
    popular = np.zeros(50)
    for start, end in zip(cohort.offsets, cohort.offsets[1:], strict=False):
        mine = np.unique(cohort.items[start:end])
        popular[mine] += 1 / len(mine) ** 0.5
    assert (popular > 0).sum() == (counted > 0).sum()
    weight = np.maximum(popular, 1.0) ** -0.25
    values, axes = np.linalg.eigh(weight[:, None] * matrix * weight[None, :])
    expected = (axes * np.maximum(values, 0)) @ axes.T
    vectors = found.vectors.double().numpy()
    np.testing.assert_allclose(vectors @ vectors.T, expected, atol=2e-3)


@pytest.mark.parametrize("privacy", [CENTRAL, "privacy=central_laplace"])
def test_one_user_more_changes_a_sum_by_at_most_one(tmp_path: Path, privacy: str) -> None:
    """In the norm of the noise, whatever the user has, and on the grid too."""
    releases = releases_of(
        config_of(tmp_path, privacy, "privacy.epsilon=null", "privacy.noise_multiplier=1.0"), 1, tmp_path
    )
    rng = np.random.default_rng(0)
    owners, values = np.repeat([0, 1, 2], [1, 7, 4000]), rng.exponential(size=4008)
    parts = releases.parts(owners, values, 3) / 2**20
    for user in range(3):
        mine = parts[owners == user]
        norm = np.linalg.norm(mine) if privacy == CENTRAL else np.abs(mine).sum()
        assert 0.99 < norm <= 1.0
    assert (parts * 2**20 == np.trunc(parts * 2**20)).all()


@pytest.mark.parametrize("mechanism", ["gaussian", "laplace"])
def test_the_budget_is_shared_by_two_releases_and_each_is_written_down(tmp_path: Path, mechanism: str) -> None:
    world = world_of(tmp_path, f"privacy=central_{mechanism}", "privacy.epsilon=2")
    plan = noise_plan("co_occurrence", world.config)
    found, ledger = statistics("co_occurrence", world, plan, tmp_path)
    assert ledger is not None
    report = ledger.report()
    assert 1.95 < report["epsilon"] <= 2.0
    assert (report["releases"], report["sampling"]) == (2, 1.0)
    lines = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    first, second = (line["noise_multiplier"] for line in lines)
    power = 2 if mechanism == "gaussian" else 1
    assert (1 / first**power) / (1 / second**power) == pytest.approx(0.1 / 0.9)
    spent = {Sampled(first, 1.0, mechanism): 1, Sampled(second, 1.0, mechanism): 1}
    assert epsilon_of(spent, 1e-5) == report["epsilon"]
    assert len(found.vectors) == world.setup.n_items
    with pytest.raises(BudgetError):
        statistics("popularity", world, noise_plan("popularity", world.config), tmp_path)


def test_noise_is_that_of_the_ledger_and_the_same_for_the_same_seed(tmp_path: Path) -> None:
    config = config_of(tmp_path, CENTRAL, "privacy.epsilon=null", "privacy.noise_multiplier=3.0")
    summed = np.arange(20_000.0)
    drawn = []
    for place, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / place).mkdir()
        drawn.append(releases_of(config, seed, tmp_path / place))
    first, again, other = (releases.release(summed) - summed / 2**20 for releases in drawn)
    assert first.std() == pytest.approx(3.0, rel=0.03)
    assert (first == again).all()
    assert not (first == other).any()


@pytest.mark.parametrize("kind", ["popularity", "co_occurrence"])
def test_a_noised_statistic_ranks_and_stands_beside_the_exact_baselines(tmp_path: Path, kind: str) -> None:
    given = [CENTRAL, "privacy.epsilon=null", "privacy.noise_multiplier=2.0", "run_id=noisy"]
    summary = carried(tmp_path, kind, *given, "evaluation.sampled_negatives=20")
    assert summary["privacy"]["epsilon"] > 0
    assert summary["test"].keys() >= {"ndcg@10", "sampled20/ndcg@10"}
    assert "popularity" in summary["baselines"]
    exact = carried(tmp_path, kind, "run_id=exact")
    assert "privacy" not in exact
    assert summary["validation"]["ndcg@10"] != exact["validation"]["ndcg@10"]
    if kind == "co_occurrence":
        assert exact["test"]["ndcg@10"] > exact["baselines"]["random"]["ndcg@10"]


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        ("popularity", ["privacy=local_gaussian"], "statistics are noised by a trusted server"),
        ("co_occurrence", ["privacy=pseudo_items"], "statistics are noised by a trusted server"),
        (
            "co_occurrence",
            [CENTRAL, "privacy.noise_multiplier=0.1"],
            r"noise_multiplier=0\.1: with it the statistic is",
        ),
    ],
)
def test_what_cannot_be_noised_is_refused_before_anything_is_done(
    tmp_path: Path, kind: str, given: list[str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        carried(tmp_path, kind, *given, "privacy.epsilon=8" if given[0] == CENTRAL else "seed=1", "run_id=b")
    assert not (tmp_path / "runs/b").exists()


def test_a_noised_popularity_is_shown_beside_the_exact_one(tmp_path: Path) -> None:
    shown = io.StringIO()
    config = config_of(tmp_path, CENTRAL, "privacy.epsilon=null", "privacy.noise_multiplier=2.0")
    baseline("popularity", config, [], console=Console(file=shown, width=120))
    assert "popularity, noised" in shown.getvalue()
    assert shown.getvalue().count("popularity ") == 2
