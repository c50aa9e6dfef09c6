"""What is worked out beforehand is what the meter of a run counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from commands.describe import describe
from fedrec.config.describe import complete_members, from_dict

Federate = Callable[..., Any]


@pytest.mark.parametrize("strategy", ["fedpeft", "full"])
@pytest.mark.parametrize("backbone", complete_members("backbone"))
def test_the_meter_counts_what_was_described(federate: Federate, backbone: str, strategy: str) -> None:
    overrides = ["federation.fraction=1.0", "dataset.n_users=20", "optim.solve_epochs=1", "evaluation.every=0"]
    outcome = federate(f"backbone={backbone}", f"strategy={strategy}", *overrides)
    found = describe(from_dict(yaml.safe_load((outcome.folder / "config.yaml").read_text())), None)
    counted = outcome.summary["bytes_per_user"]
    assert found.items == 100
    assert {way: counted[way] for way in ("up", "down", "one_time")} == {
        "up": found.run.up,
        "down": found.run.down,
        "one_time": found.run.one_time,
    }
    assert counted["by_phase"] == {
        phase.name: {"up": phase.up * phase.rounds, "down": phase.down * phase.rounds} for phase in found.phases
    }
    # One ranking after the last round, of validation and test, in messages of its own.
    last = found.phases[-1]
    assert counted["evaluation"] == last.down + last.once + 2 * found.metrics
