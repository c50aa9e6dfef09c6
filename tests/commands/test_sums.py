"""`fedrec audit recovery --of sums`: what sums tell beyond popularity, and that noise takes it away."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor
from typer.testing import CliRunner

from commands import cli
from commands.audit.learned import Case, attacked, logistic
from commands.audit.sums import recovery_from_sums, stepped_on
from fedrec.config.compose import compose
from fedrec.config.paths import settle
from fedrec.core.errors import ConfigError
from fedrec.core.rng import generator
from fedrec.optim.server import ServerOptimiser, server_step

ROOT = Path(__file__).resolve().parent.parent.parent
if str(ROOT) not in sys.path:  # benchmarks are not installed
    sys.path.append(str(ROOT))

SMALL = [
    "dataset.n_users=120",
    "dataset.n_items=100",
    "base_table.dim=8",
    "base_table.start=random",
    "strategy=full",
    "strategy.rounds=6",
    "optim=fast",
    "federation.fraction=0.2",
]


def audited(tmp_path: Path, *overrides: str, users: int = 100) -> dict[str, Any]:
    chosen = {text.partition("=")[0]: text for text in [*SMALL, *overrides]}
    texts = [*chosen.values(), f"runs_dir={tmp_path}/runs", f"cache_dir={tmp_path}/cache"]
    quiet = Console(stderr=True, quiet=True)
    return recovery_from_sums(settle(compose(texts, base=None), None), texts, users, console=quiet)


def test_sums_over_few_users_tell_their_items_and_noised_ones_do_not(tmp_path: Path) -> None:
    plain = audited(tmp_path)
    assert plain["sums"] == 6
    assert plain["users_a_sum"] == 24
    assert plain["history"]["gain"] > 0.02
    assert plain["history"]["interval"][0] > 0
    noised = audited(tmp_path, "privacy=central_gaussian", "privacy.epsilon=null", "privacy.noise_multiplier=20")
    assert abs(noised["history"]["sums"] - 0.5) < 0.1, "what is left is a coin"
    assert noised["history"]["gain"] < 0.02 < plain["history"]["gain"]
    manifest = json.loads((Path(noised["run"]) / "manifest.json").read_text())
    assert {"checkpoint_every=1", "checkpoints_kept=7"} <= set(manifest["overrides"])


@pytest.mark.parametrize(
    ("given", "users", "said"),
    [
        (["optim=paper"], 50, "give optim=fast with optim.server.kind"),
        (["optim.server.kind=adagrad"], 50, "give optim=fast with optim.server.kind"),
        (["aggregation=grid", "federation.max_row_norm=10"], 50, "aggregation=grid: the sums are the same with masks"),
        (["statistics.start=popularity"], 50, "statistics.start=popularity: an attack reads what training moves"),
        (
            ["strategy=fedpeft", "embedding=popularity", "strategy.warmup_rounds=0"],
            50,
            "embedding=popularity: an attack",
        ),
        (
            ["strategy=fedpeft", "strategy.warmup_rounds=1", "strategy.merge_every=2"],
            50,
            "strategy.merge_every=2: a merge",
        ),
        (["dataset.split=temporal"], 50, "dataset.split=temporal: the attack knows what is popular"),
        ([], 121, "--users 121: give from 4 to 120"),
    ],
)
def test_what_an_audit_of_sums_cannot_take_is_said(tmp_path: Path, given: list[str], users: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace(".", r"\.")):
        audited(tmp_path, *given, users=users)


@pytest.mark.parametrize("kind", ["sgd", "adam", "yogi"])
def test_who_has_the_states_around_a_step_knows_what_it_was_on(kind: Any) -> None:
    rule = ServerOptimiser(kind, lr=0.1, halved_after=None, beta1=0.9, beta2=0.99, eps=1e-6)
    model, state = {"t": torch.zeros(4, 3, dtype=torch.float64)}, dict[str, Tensor]()
    for step in range(4):
        delta, before = torch.randn(4, 3, generator=generator(step, "delta"), dtype=torch.float64), state
        model, state = server_step(rule, model, {"t": delta}, before)
        torch.testing.assert_close(stepped_on(rule, before, state)["t"], delta, atol=1e-12, rtol=0)
    assert not stepped_on(rule, state, state)["t"].any(), "no step was taken"


def test_the_command_ends_with_what_was_found(tmp_path: Path) -> None:
    given = [*SMALL, "strategy.rounds=2", f"runs_dir={tmp_path}/runs", f"cache_dir={tmp_path}/cache"]
    texts = list({text.partition("=")[0]: text for text in given}.values())
    result = CliRunner().invoke(cli.app, ["audit", "recovery", "--of", "sums", "--users", "100", *texts])
    assert result.exit_code == 0, result.output
    assert "2 sums over 24 users each" in result.output
    assert "from popularity alone" in result.output


def test_weights_are_where_the_likelihood_is_greatest() -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(4000, 3))
    true = np.array([-1.0, 2.0, 0.0, -0.5])
    label = rng.random(4000) < 1 / (1 + np.exp(-(true[0] + table @ true[1:])))
    found = logistic(table, label)
    np.testing.assert_allclose(found, true, atol=0.2)

    def likelihood(weights: np.ndarray) -> float:
        score = weights[0] + table @ weights[1:]
        return float((label * score - np.logaddexp(0, score)).mean() - 5e-4 * (weights**2).sum())

    assert all(likelihood(found) >= likelihood(found + step) for step in 0.05 * rng.normal(size=(200, 4)))


def test_what_adds_nothing_gains_nothing_and_what_names_the_items_gains_all() -> None:
    rng = np.random.default_rng(0)
    cases, naming = [], []
    for _ in range(60):
        history = rng.permutation(200)[:20]
        features = rng.normal(size=(200, 7))
        features[history, 0] += 1
        cases.append(Case(features, history))
        named = features.copy()
        named[history, 4] += 100
        naming.append(Case(named, history))
    idle, told = (attacked(each, latest=False) for each in (cases, naming))
    assert idle["popularity"] == pytest.approx(0.76, abs=0.04)  # of normal numbers a standard deviation apart
    assert idle["interval"][0] < 0.01
    assert idle["interval"][0] <= idle["gain"] <= idle["interval"][1]
    assert told["both"] > 0.99
    assert told["gain"] == pytest.approx(told["both"] - told["popularity"])
    latest = attacked(naming, latest=True)
    assert latest["both"] > 0.99


def test_the_page_has_the_figures_that_are_kept() -> None:
    from benchmarks import sum_recovery

    assert sum_recovery.main(["--check"]) == 0
    for model in sum_recovery.MODELS:
        kept = json.loads(sum_recovery.kept_as(model).read_text())
        assert kept["overrides"] == list(sum_recovery.MODELS[model])
