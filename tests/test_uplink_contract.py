"""The contract of uplinks, over every member with every kind of codec."""

from __future__ import annotations

from typing import Any

import pytest

from fedrec.config.describe import load_member
from fedrec.core.registry import codecs, uplinks
from fedrec.testing.uplink import UplinkContract
from fedrec.uplinks.base import Uplink

CODECS: dict[str, dict[str, Any]] = {"float32": {}, "float16": {"scale": "row"}, "int8": {"scale": "tensor"}}
SMALL: dict[str, dict[str, Any]] = {"actions": {"actions": 5}, "sampled": {"rows": 7}}
CHOICES = {name: (name, SMALL.get(name, {})) for name in uplinks.names()}
CHOICES["actions, drawn"] = ("actions", {"actions": 5, "levels": "drawn"})


class TestEveryMember(UplinkContract):
    @pytest.fixture(params=CODECS)
    def codec(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture(params=CHOICES)
    def uplink(self, request: pytest.FixtureRequest, codec: str) -> Uplink:
        name, values = CHOICES[request.param]
        config = load_member("uplink", name, **values)
        made: Uplink = uplinks.get(name)(config, codecs.get(codec)(load_member("codec", codec, **CODECS[codec])))
        return made
