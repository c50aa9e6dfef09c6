"""`fedrec audit membership`: bounds that hold, runs that are told apart, accounts that are not broken."""

from __future__ import annotations

import importlib
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import binom
from typer.testing import CliRunner

from commands import cli
from commands.audit import watching
from commands.audit.candidates import candidates
from commands.audit.membership import membership
from commands.audit.one_run import auc, chance, lower_bound
from fedrec.config.compose import compose
from fedrec.config.paths import settle
from fedrec.core.errors import ConfigError
from fedrec.data.prepare import load

ROOT = Path(__file__).resolve().parent.parent.parent
if str(ROOT) not in sys.path:  # benchmarks are not installed
    sys.path.append(str(ROOT))

SMALL = [
    "dataset.n_users=60",
    "dataset.n_items=100",
    "base_table.dim=8",
    "strategy=full",
    "strategy.rounds=10",
    "optim=fast",
    "federation.fraction=1",
    "simulation.nodes=2",
]
BUDGET = ["privacy=central_gaussian", "privacy.epsilon=2"]


def audited(tmp_path: Path, count: int, *overrides: str, canaries: bool = True) -> dict[str, Any]:
    typed = {text.partition("=")[0] for text in overrides}
    small = [text for text in SMALL if text.partition("=")[0] not in typed]
    texts = [*small, *overrides, f"runs_dir={tmp_path}/runs", f"cache_dir={tmp_path}/cache"]
    quiet = Console(stderr=True, quiet=True)
    return membership(settle(compose(texts, base=None), None), texts, count, canaries=canaries, console=quiet)


# ---- the bound -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "expected"), [([3.0, 2.0, 1.0, 0.0], 1.0), ([0.0, 1.0, 2.0, 3.0], 0.0), ([1.0, 1.0, 1.0, 1.0], 0.5)]
)
def test_the_area_under_the_curve_counts_a_tie_half(score: list[float], expected: float) -> None:
    label = np.array([True, True, False, False])
    assert auc(np.array(score), label) == expected


@pytest.mark.parametrize(("candidates", "guesses", "right"), [(100, 100, 60), (200, 50, 50), (10, 4, 0), (30, 30, 29)])
@pytest.mark.parametrize("delta", [0.0, 1e-3])
def test_the_chance_is_that_of_the_theorem(candidates: int, guesses: int, right: int, delta: float) -> None:
    epsilon = 0.7
    each = math.exp(epsilon) / (1 + math.exp(epsilon))
    points = [binom.pmf(k, guesses, each) for k in range(guesses + 1)]
    worst = max(
        (
            sum(points[k] for k in range(max(0, right - i), right)) * 2 * candidates / i
            for i in range(1, candidates + 1)
        ),
    )
    expected = min(1.0, sum(points[right:]) + delta * worst)
    assert chance(candidates, guesses, right, epsilon, delta) == pytest.approx(expected, rel=1e-9)


def test_a_bound_of_a_mechanism_whose_epsilon_is_known_is_below_it_and_near() -> None:
    """Each coin answered at random with the chance of a wrong answer that is epsilon-private: 1,000 of them."""
    epsilon, rng, found = 2.0, np.random.default_rng(0), []
    for _ in range(100):
        coins = rng.random(1000) < 0.5
        told = coins ^ (rng.random(1000) < 1 / (1 + math.exp(epsilon)))
        found.append(lower_bound(told + 1e-3 * rng.random(1000), coins, 0.0).epsilon)
    assert np.mean(np.array(found) > epsilon) <= 0.05
    assert np.median(found) > 1.4


def test_bounds_of_several_scores_hold_together() -> None:
    rng = np.random.default_rng(2)
    coins = rng.random(300) < 0.5
    score = coins + rng.normal(size=300)
    assert 0 < lower_bound(score, coins, 0.0, 2).epsilon < lower_bound(score, coins, 0.0).epsilon


def test_updates_that_would_fill_the_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_MOST_NUMBERS", 10_000)
    with pytest.raises(
        ConfigError, match="--candidates 20: their updates of 800 numbers each are held at once, at most 12"
    ):
        audited(tmp_path, 20)


def test_scores_that_say_nothing_show_nothing() -> None:
    rng = np.random.default_rng(1)
    assert lower_bound(rng.random(500), rng.random(500) < 0.5, 1e-5) == (0.0, 0, 0)


# ---- the run ---------------------------------------------------------------------------------------------------------


def test_a_run_without_privacy_gives_canaries_away_and_a_budget_bounds_what_is_learned(tmp_path: Path) -> None:
    free = audited(tmp_path, 60)
    assert free["all_models"]["auc"] > 0.8
    assert free["all_models"]["epsilon"] > 0.5
    assert (free["account"], free["holds"]) == (None, None)
    noised = audited(tmp_path, 60, *BUDGET)
    assert noised["account"] == pytest.approx(2.0, abs=0.05)
    assert noised["holds"] is True
    assert noised["all_models"]["auc"] < free["all_models"]["auc"] - 0.1
    for found in (free, noised):
        assert found["took_part"] == free["took_part"], "the coins are of the seed"
        assert 15 < found["took_part"] < 45


def test_users_of_the_data_can_be_candidates_and_a_phase_or_merge_is_no_step(tmp_path: Path) -> None:
    found = audited(
        tmp_path, 20, "strategy=fedpeft", "strategy.warmup_rounds=3", "strategy.merge_every=3", canaries=False
    )
    assert (found["candidates"], found["canaries"]) == (20, False)
    for look in ("all_models", "last_model"):
        assert 0 <= found[look]["auc"] <= 1
    manifest = json.loads((Path(found["run"]) / "manifest.json").read_text())
    assert "dataset.items=listed" in manifest["overrides"]


def test_coins_that_fall_alike_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def alike(*given: Any, **more: Any) -> Any:
        made = candidates(*given, **more)
        return replace(made, took_part=np.ones_like(made.took_part))

    monkeypatch.setattr("commands.audit.membership.candidates", alike)
    with pytest.raises(ConfigError, match="--candidates 20: with seed=0 all coins fall alike"):
        audited(tmp_path, 20)


def test_whose_coin_says_no_is_not_there(tmp_path: Path) -> None:
    dataset = load(compose(SMALL, base=None).dataset)  # type: ignore[arg-type]
    for canaries in (True, False):
        made = candidates(dataset, 30, 5, canaries=canaries)
        there = set(made.run.user_ids)
        for name, took in zip(made.interactions.user_ids, made.took_part, strict=True):
            assert (name in there) == took
        certain = set(dataset.interactions.user_ids) - set(made.interactions.user_ids)
        assert certain < there
        assert len(there) == len(certain) + made.took_part.sum()
        for user, name in enumerate(made.run.user_ids):
            if name in certain:
                own = dataset.interactions.user_ids.index(name)
                assert (made.run.history(user) == dataset.interactions.history(own)).all()


@pytest.mark.parametrize(
    ("count", "canaries", "given", "said"),
    [
        (10, True, ["privacy=local_gaussian", "privacy.epsilon=8"], "privacy=local_gaussian: its account is not"),
        (10, True, ["grouping=key"], "grouping=key: candidates have no group"),
        (60, False, [], "--candidates 60: the data have 60 users"),
        (9, True, [], "--candidates 9: .* give at least 10"),
    ],
)
def test_what_an_audit_cannot_take_is_said(
    tmp_path: Path, count: int, canaries: bool, given: list[str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        audited(tmp_path, count, *given, canaries=canaries)


def test_the_page_has_the_kept_figures_whose_accounts_hold() -> None:
    script = importlib.import_module("benchmarks.membership")
    assert script.main(["--check"]) == 0, "run `python -m benchmarks.membership --page`"
    for one in script.CASES:
        kept = json.loads(one.file.read_text(encoding="utf-8"))
        assert kept["holds"] in (True, None)
        assert kept["overrides"] == [*script.MODELS[one.model], "dataset=ml_100k"]


def test_the_line_of_json_and_the_words(tmp_path: Path) -> None:
    short = [text.replace("rounds=10", "rounds=2") for text in SMALL]
    words = [*short, f"runs_dir={tmp_path}", f"cache_dir={tmp_path}/cache"]
    done = CliRunner().invoke(cli.app, ["audit", "membership", "--candidates", "20", "--json", *words])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["candidates"] == 20
    assert "20 candidates, canaries, of whom" in done.stderr
    assert "the run keeps no account of privacy" in done.stderr
