"""The contract of privacy mechanisms, over every member of the family by itself."""

from __future__ import annotations

from typing import Any

import pytest

from fedrec.config.describe import load_member
from fedrec.core.registry import privacies
from fedrec.privacy.base import PrivacyMechanism
from fedrec.testing.privacy import DRAWS, PrivacyContract, assert_same, noised, same, sparse, total

SETTLED: dict[str, dict[str, Any]] = {
    **{name: {"noise_multiplier": 1.0, "population": 60} for name in ("central_gaussian", "central_laplace")},
    **{name: {"noise_multiplier": 1.0} for name in ("local_gaussian", "local_laplace")},
    "distributed_gaussian": {"noise_multiplier": 1.0, "survivors": 4},
    "distributed_gaussian at once": {"noise_multiplier": 1.0, "survivors": 4, "drawn": "sum"},
}
"""What the server fills in from the plan and the data."""


class TestEveryMechanism(PrivacyContract):
    @pytest.fixture(params=[*privacies.names(), "distributed_gaussian at once"])
    def mechanism(self, request: pytest.FixtureRequest) -> PrivacyMechanism:
        name = request.param.partition(" ")[0]
        made: PrivacyMechanism = privacies.get(name)(load_member("privacy", name, **SETTLED.get(request.param, {})))
        return made


def test_none_changes_nothing() -> None:
    none = privacies.get("none")(load_member("privacy", "none"))
    assert none.reads == "nothing"
    assert_same(none.on_devices(sparse(), DRAWS), sparse())
    assert same(noised(none), dict(total().units))
    assert none.event(1) is None
