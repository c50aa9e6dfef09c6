"""Every backbone learns in a whole run, and leaves alone what it should."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedrec.config.describe import complete_members

Federate = Callable[..., Any]

SHOP = ["dataset.n_users=300", "evaluation.every=0", "federation.fraction=1.0"]
RATES = {"recency": 0.4, "gru4rec": 0.1}
"""Of the local optimiser. States that are means of items of length one need larger steps to tell items apart."""


@pytest.mark.parametrize("backbone", complete_members("backbone"))
def test_the_loss_falls_and_the_model_beats_chance(
    federate: Federate, chance: Callable[[Path], tuple[float, float]], backbone: str
) -> None:
    outcome = federate(
        f"backbone={backbone}", "strategy=full", "strategy.rounds=15", f"optim.lr={RATES.get(backbone, 0.02)}", *SHOP
    )
    assert outcome.metrics[-1]["loss"] < 0.95 * outcome.metrics[0]["loss"]
    expected, error = chance(outcome.folder)
    assert outcome.summary["test"]["ndcg@10"] > expected + 3 * error
    assert outcome.summary["baselines"]["random"]["ndcg@10"] == pytest.approx(expected)
