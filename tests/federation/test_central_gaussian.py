"""Central differential privacy in whole runs: calibrated, accounted, stopped in time, and nothing told beside it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from commands.describe import describe
from exchanges.records import UPDATE
from fedrec.config.compose import compose
from fedrec.config.describe import from_dict
from fedrec.core.errors import BudgetError, ConfigError
from fedrec.core.tensors import TableSpec
from fedrec.privacy.accounting import Sampled, epsilon_of
from fedrec.stages.base import Release
from fedrec.wire.protocol import UPDATE_SCALARS, Setup

Federate = Callable[..., Any]

PRIVATE = ["privacy=central_gaussian", "privacy.epsilon=2", "strategy=full", "strategy.rounds=4"]
BASE = Path("/somewhere")


def test_a_budget_is_all_that_is_typed(federate: Federate) -> None:
    outcome = federate(*PRIVATE)
    config = from_dict(yaml.safe_load((outcome.folder / "config.yaml").read_text()))
    privacy: Any = config.privacy
    assert config.cohort.name == "poisson", "the mechanism chooses it"
    assert privacy.population == 60
    account = outcome.summary["privacy"]
    assert 1.9 < account["epsilon"] <= 2.0
    assert (account["delta"], account["releases"], account["sampling"]) == (1e-5, 4, 0.3)
    assert outcome.summary["best_round"] == outcome.summary["rounds"] == 4, "no metric chooses a round"
    assert "charges nothing for metrics, so validation chooses no round" in outcome.summary["chosen"]
    kind = Sampled(privacy.noise_multiplier, 0.3)
    assert account["epsilon"] == pytest.approx(epsilon_of({kind: 4}, 1e-5))
    told = [line["privacy"]["epsilon"] for line in outcome.metrics if "privacy" in line]
    assert told == sorted(told)
    assert told[0] == pytest.approx(epsilon_of({kind: 2}, 1e-5)), "after the first validation"
    assert told[-1] == account["epsilon"]
    lines = [json.loads(line) for line in (outcome.folder / "ledger.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 2, 3, 4]
    assert describe(config, 100).privacy == pytest.approx({**account, "noise_multiplier": privacy.noise_multiplier})


@pytest.mark.parametrize("nodes", [2, 60])
def test_nothing_is_told_beside_the_sum(federate: Federate, nodes: int) -> None:
    outcome = federate(*PRIVATE, "privacy.epsilon=null", "privacy.noise_multiplier=1.0", nodes=nodes)
    setup = Setup.from_json((outcome.folder / "setup.json").read_text())
    for message, _, data in outcome.grid.packets(outcome.grid.received, UPDATE):
        form = setup.update_format({"embedding.items": TableSpec((100, 8))}, 1 if nodes == 60 else 2)
        scalars = dict(zip(UPDATE_SCALARS, form.decode(data).scalars, strict=True))
        assert scalars["users"] == scalars["weight"] > 0
        assert not any(value for name, value in scalars.items() if name not in ("users", "weight")), message
    for line in outcome.metrics:
        assert not line.keys() & {"loss", "examples", "cold_users", "dropped_users"}


def test_where_users_live_changes_neither_noise_nor_model(federate: Federate) -> None:
    given = [*PRIVATE, "privacy.epsilon=null", "privacy.noise_multiplier=1.0", "codec=int8"]
    one = federate(*given, nodes=1).checkpoint()["trainable.embedding.items"]
    for nodes in (2, 7):
        assert torch.equal(federate(*given, nodes=nodes).checkpoint()["trainable.embedding.items"], one)


def test_a_run_ends_before_it_would_overspend(federate: Federate) -> None:
    """With the noise given and too small for all rounds."""
    with pytest.raises(BudgetError, match=r"round 3 would take the run to epsilon=.*privacy\.epsilon=2"):
        federate(*PRIVATE, f"privacy.noise_multiplier={_enough_for(2)}")


def _enough_for(rounds: int) -> float:
    from fedrec.privacy.accounting import calibrated

    return calibrated(Release("gaussian", 1.0), rounds, 0.3, 2.0, 1e-5)


def composed(*overrides: str) -> Any:
    given = {text.partition("=")[0]: text for text in [*PRIVATE, *overrides]}
    return compose(list(given.values()), base=BASE)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("federation.repeats=1", r"federation\.repeats=1: .*leave it out, or give federation\.repeats=0"),
        ("federation.max_failures=0.5", r"give federation\.max_failures=1\.0"),
        ("federation.min_users=1", r"give federation\.min_users=0"),
        ("federation.over_sampling=0.1", r"federation\.over_sampling=0\.1: with privacy=central_gaussian"),
        ("cohort=fixed", r"cohort=fixed: .*leave it out, or give cohort=poisson"),
        ("privacy.epsilon=null", r"give one of them"),
        ("backbone=fedpergnn", r"backbone=fedpergnn: its users report items"),
    ],
)
def test_what_the_account_does_not_have_is_refused(override: str, said: str) -> None:
    assert composed().privacy.name == "central_gaussian"
    with pytest.raises(ConfigError, match=said):
        composed(override)


def test_a_deployment_has_to_say_how_many_users_there_are() -> None:
    items = ["runtime=deployment", "dataset=table", "dataset.item_table=items.csv", "dataset.items=listed"]
    items += ["dataset.k_core=0", "dataset.min_rating=null"]
    with pytest.raises(ConfigError, match=r"privacy\.population=null: with runtime=deployment"):
        composed(*items)
    assert composed(*items, "privacy.population=1000").privacy.population == 1000


@pytest.mark.parametrize("chosen", ["privacy=central_gaussian", "experiment=central_gaussian"])
def test_the_mechanism_brings_the_cohort_and_the_rules_that_its_account_needs(chosen: str) -> None:
    config: Any = compose([chosen, "privacy.epsilon=4"], base=BASE)
    assert config.privacy.epsilon == 4.0
    assert config.cohort.name == "poisson"
    plain = compose([], base=BASE).federation
    rules = {"max_failures": 1.0, "min_users": 0, "repeats": 0, "max_node_share": 1.0, "over_sampling": 0.0}
    changed = {"fraction": config.federation.fraction, "weight_cap": config.federation.weight_cap}
    assert config.federation == dataclasses.replace(plain, **rules, **changed)


def test_a_budget_without_a_mechanism_is_told_what_to_type() -> None:
    said = r"privacy\.epsilon=8: .*privacy=none has no values to set; give privacy=central_gaussian or .*with it"
    with pytest.raises(ConfigError, match=said):
        compose(["privacy.epsilon=8"], base=BASE)
