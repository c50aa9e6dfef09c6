"""The contract of privacy mechanisms, over every member of the family by itself."""

from __future__ import annotations

import pytest
import torch

from fedrec.config.describe import load_member
from fedrec.core.registry import privacies
from fedrec.privacy.base import PrivacyMechanism
from fedrec.testing.privacy import PrivacyContract, delta, hooks


class TestEveryMechanism(PrivacyContract):
    @pytest.fixture(params=privacies.names())
    def mechanism(self, request: pytest.FixtureRequest) -> PrivacyMechanism:
        made: PrivacyMechanism = privacies.get(request.param)(load_member("privacy", request.param))
        return made


def test_none_changes_nothing_and_says_so() -> None:
    none = privacies.get("none")(load_member("privacy", "none"))
    assert not none.changes_updates
    for after in hooks(none, delta(), 3):
        assert all(torch.equal(after[name], tensor) for name, tensor in delta().items())
