"""The contract of privacy mechanisms, over every member of the family by itself."""

from __future__ import annotations

import pytest

from fedrec.config.describe import load_member
from fedrec.core.registry import privacies
from fedrec.privacy.base import PrivacyMechanism
from fedrec.testing.privacy import DRAWS, SETTLED, PrivacyContract, assert_same, noised, same, sparse, total


class TestEveryMechanism(PrivacyContract):
    @pytest.fixture(params=[*privacies.names(), "distributed_gaussian at once"])
    def mechanism(self, request: pytest.FixtureRequest) -> PrivacyMechanism:
        name = request.param.partition(" ")[0]
        values = {"drawn": "sum"} if "at once" in request.param else {}
        made: PrivacyMechanism = privacies.get(name)(load_member("privacy", name, **SETTLED.get(name, {}), **values))
        return made


def test_none_changes_nothing() -> None:
    none = privacies.get("none")(load_member("privacy", "none"))
    assert none.reads == "nothing"
    assert_same(none.on_devices(sparse(), DRAWS), sparse())
    assert same(noised(none), dict(total().units))
    assert none.event(1) is None
