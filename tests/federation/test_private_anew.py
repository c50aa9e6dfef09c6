"""`optim.private_anew`: what a user did in earlier rounds reaches a later one through the global model alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from client_app.training.cohort import CohortEngine
from fedrec.core.tensors import Tensors

Federate = Callable[..., Any]
ANEW = ("optim=fast", "optim.private_anew=true", "optim.negatives=20", "federation.fraction=1.0")


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Tensors]]:
    """The private tensors with which users began, as the engine was given them: to be trained, and to be ranked."""
    seen: dict[str, list[Tensors]] = {"train": [], "solve": []}

    def spy(name: str) -> None:
        original = getattr(CohortEngine, name)

        def wrapped(self: CohortEngine, model: Any, cohort: Any, private: Tensors, *more: Any, **named: Any) -> Any:
            order = cohort.keys.argsort()
            seen[name].append({key: tensor[order].clone() for key, tensor in private.items()})
            return original(self, model, cohort, private, *more, **named)

        monkeypatch.setattr(CohortEngine, name, wrapped)

    spy("train")
    spy("solve")
    return seen


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_every_round_and_every_ranking_starts_anew(
    federate: Federate, starts: dict[str, list[Tensors]], optimiser: str
) -> None:
    outcome = federate(*ANEW, f"optim.private_optimiser={optimiser}", nodes=1)
    assert len(starts["train"]) == 5
    for begun in starts.values():
        assert len(begun) > 1
        for later in begun[1:]:
            assert torch.equal(later["user"], begun[0]["user"])
    assert outcome.summary["test"]["cold_users"] == 0, "who has trained is known all the same"


def test_without_it_a_user_goes_on_where_it_was(federate: Federate, starts: dict[str, list[Tensors]]) -> None:
    federate(*ANEW[:1], *ANEW[2:], nodes=1)
    first, second, *_ = starts["train"]
    assert not torch.equal(first["user"], second["user"])


def test_the_layout_changes_nothing(federate: Federate) -> None:
    one, many = federate(*ANEW, nodes=1), federate(*ANEW, nodes=7)
    assert many.summary["test"] == pytest.approx(one.summary["test"], abs=1e-6)
