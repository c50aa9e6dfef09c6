"""The contract of privacy mechanisms, over every member of the family by itself."""

from __future__ import annotations

from typing import Any

import pytest

from fedrec.config.describe import load_member
from fedrec.core.registry import privacies
from fedrec.privacy.base import PrivacyMechanism
from fedrec.testing.privacy import DRAWS, PrivacyContract, assert_same, noised, same, sparse, total

SETTLED: dict[str, dict[str, Any]] = {"central_gaussian": {"noise_multiplier": 1.0, "population": 60}}
"""What the server fills in from the plan and the data."""


class TestEveryMechanism(PrivacyContract):
    @pytest.fixture(params=privacies.names())
    def mechanism(self, request: pytest.FixtureRequest) -> PrivacyMechanism:
        values = SETTLED.get(request.param, {})
        made: PrivacyMechanism = privacies.get(request.param)(load_member("privacy", request.param, **values))
        return made


def test_none_changes_nothing() -> None:
    none = privacies.get("none")(load_member("privacy", "none"))
    assert none.reads == "nothing"
    assert_same(none.on_devices(sparse(), DRAWS), sparse())
    assert same(noised(none), dict(total().units))
    assert none.event(1) is None
