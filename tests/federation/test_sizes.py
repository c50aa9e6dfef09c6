"""What is worked out beforehand is what the meter of a run counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from commands.describe import describe
from fedrec.config.describe import from_dict
from fedrec.registry import backbones

Federate = Callable[..., Any]


@pytest.mark.parametrize("strategy", ["fedpeft", "full"])
@pytest.mark.parametrize("backbone", backbones.names())
def test_the_meter_counts_what_was_described(federate: Federate, backbone: str, strategy: str) -> None:
    overrides = ["strategy.fraction=1.0", "dataset.n_users=20", "optim.solve_epochs=1", "evaluation.every=2"]
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
    # Validations after rounds 2, 4 and 5, and the test: each in the phase to which its round belongs.
    ends = [0, *(sum(phase.rounds for phase in found.phases[: n + 1]) for n in range(len(found.phases)))]
    moved = 0
    for phase, start, end in zip(found.phases, ends, ends[1:], strict=False):
        evaluations = sum(start < round <= end for round in (2, 4, 5, 5))
        moved += evaluations * phase.evaluation + (phase.once if evaluations else 0)
    assert counted["evaluation"] == moved
