"""The contract of backbones, over every member of the family by itself."""

from __future__ import annotations

import pytest

from fedrec.backbones.base import Backbone
from fedrec.config.describe import complete_members, load_member
from fedrec.core.registry import backbones
from fedrec.testing.backbone import DIM, BackboneContract


class TestEveryBackbone(BackboneContract):
    @pytest.fixture(params=complete_members("backbone"))
    def backbone(self, request: pytest.FixtureRequest) -> Backbone:
        made: Backbone = backbones.get(request.param)(load_member("backbone", request.param), DIM)
        return made
