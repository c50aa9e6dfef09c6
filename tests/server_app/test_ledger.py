"""The ledger only grows, is written before a release, and ends a run before it would overspend."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedrec.core.errors import BudgetError, StoreError
from fedrec.privacy.accounting import Sampled, epsilon_of
from fedrec.stages.base import Release
from server_app.ledger import Ledger

DELTA, ROUNDS = 1e-5, 4
RELEASE = [Release("gaussian", 8.0)]
BUDGET = epsilon_of({Sampled(8.0, 1.0): ROUNDS}, DELTA) * 1.001


def ledger(path: Path, budget: float | None = BUDGET) -> Ledger:
    return Ledger(path, 1.0, budget, DELTA, ROUNDS, "user")


def test_a_plan_within_its_budget_is_spent_to_the_end_and_no_further(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    account = ledger(path)
    assert account.epsilon == 0.0
    assert not path.exists(), "a run that has released nothing has no ledger"
    for round in range(1, ROUNDS + 1):
        account.spend(round, RELEASE)
        assert len(path.read_text().splitlines()) == round
    assert account.epsilon <= BUDGET
    before = path.read_text()
    with pytest.raises(BudgetError, match=r"round 5 would take the run to epsilon=.*4 releases, the\s+plan 4"):
        account.spend(5, RELEASE)
    assert path.read_text() == before, "what is not released is not written down"


def test_rounds_that_are_done_again_count_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    for round in (1, 2, 3):
        ledger(path).spend(round, RELEASE)
    resumed = ledger(path)
    assert resumed.epsilon == pytest.approx(epsilon_of({Sampled(8.0, 1.0): 3}, DELTA))
    resumed.spend(3, RELEASE)
    with pytest.raises(BudgetError):
        resumed.spend(4, RELEASE)
    assert [json.loads(line)["round"] for line in path.read_text().splitlines()] == [1, 2, 3, 3]
    assert resumed.report()["releases"] == 4


def test_what_kind_of_noise_it_was_is_written_and_read(tmp_path: Path) -> None:
    """A choice of users that is no secret counts for nothing, and releases of old say no kind."""
    path = tmp_path / "ledger.jsonl"
    kinds = [Release("skellam", 8.0, in_secret=False, grid=100.0), Release("laplace", 9.0), Release("gaussian", 8.0)]
    Ledger(path, 0.1, None, DELTA, ROUNDS, "user").spend(1, kinds[1:])
    other = tmp_path / "other.jsonl"
    Ledger(other, 0.1, None, DELTA, ROUNDS, "user").spend(1, kinds[:1])
    with path.open("a") as file:
        file.write('{"round": 2, "noise_multiplier": 8.0, "sampling": 0.1}\n')
    found = Ledger(path, 0.1, None, DELTA, ROUNDS, "user").epsilon
    assert found == epsilon_of({Sampled(9.0, 0.1, "laplace"): 1, Sampled(8.0, 0.1): 2}, DELTA)
    assert Ledger(other, 0.1, None, DELTA, ROUNDS, "user").report()["sampling"] == 1.0
    assert Ledger(other, 0.1, None, DELTA, ROUNDS, "user").epsilon == epsilon_of(
        {Sampled(8.0, 1.0, "skellam", 100.0): 1}, DELTA
    )


def test_without_a_budget_the_account_is_kept_all_the_same(tmp_path: Path) -> None:
    account = ledger(tmp_path / "ledger.jsonl", budget=None)
    for round in range(1, 10):
        account.spend(round, RELEASE)
    assert account.report()["epsilon"] == pytest.approx(epsilon_of({Sampled(8.0, 1.0): 9}, DELTA))


@pytest.mark.parametrize("line", ["", "{", "[1]", '{"round": 1}', '{"noise_multiplier": null, "sampling": 1}'])
def test_a_ledger_that_cannot_be_read_ends_the_run(tmp_path: Path, line: str) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger(path).spend(1, RELEASE)
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(StoreError, match="line 2 of the ledger"):
        ledger(path)
