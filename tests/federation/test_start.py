"""What a run may start from: item text, or nothing but random numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client_app import entry
from fedrec.core.errors import DataError

Federate = Callable[..., Any]


@pytest.fixture
def interactions(tmp_path: Path) -> Path:
    """A table without any text."""
    rng = np.random.default_rng(0)
    path = tmp_path / "clicks.csv"
    lines = [f"u{user},i{item}" for user in range(30) for item in rng.permutation(40)[:8]]
    path.write_text("who,what\n" + "\n".join(lines) + "\n")
    return path


def table(path: Path) -> list[str]:
    return [
        "dataset=table",
        f"dataset.interactions={path}",
        "dataset.user_column=who",
        "dataset.item_column=what",
        "dataset.time_column=null",
    ]


def test_a_table_without_text_trains_from_random_numbers(federate: Federate, interactions: Path) -> None:
    outcome = federate(*table(interactions), "base_table.start=random")
    assert outcome.summary["test"]["users"] == 30
    assert set(outcome.summary["baselines"]) == {"random", "popularity"}


def test_a_table_without_text_says_what_to_do(federate: Federate, interactions: Path) -> None:
    with pytest.raises(DataError, match=r"none of the catalogue's \d+ items has any text.*base_table\.start=random"):
        federate(*table(interactions))


def test_the_client_that_flower_loads_is_the_real_one(federate: Federate) -> None:
    assert federate(client=entry.app).summary["test"] == federate().summary["test"]


def test_random_starts_depend_on_the_seed_alone(federate: Federate) -> None:
    first, again = federate("base_table.start=random"), federate("base_table.start=random")
    other = federate("base_table.start=random", "seed=1")
    assert first.summary["test"] == again.summary["test"] != other.summary["test"]
