"""The contract of downlinks, over every member with every kind of codec."""

from __future__ import annotations

from typing import Any

import pytest

from fedrec.config.describe import load_member
from fedrec.core.registry import codecs, downlinks
from fedrec.downlinks.base import Downlink
from fedrec.testing.downlink import DownlinkContract

CODECS: dict[str, dict[str, Any]] = {"float32": {}, "float16": {"scale": "row"}, "int8": {"scale": "tensor"}}
SMALL: dict[str, dict[str, Any]] = {"actions": {"actions": 6}}


class TestEveryMember(DownlinkContract):
    @pytest.fixture(params=CODECS)
    def codec(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture(params=downlinks.names())
    def downlink(self, request: pytest.FixtureRequest, codec: str) -> Downlink:
        config = load_member("downlink", request.param, **SMALL.get(request.param, {}))
        made: Downlink = downlinks.get(request.param)(
            config, codecs.get(codec)(load_member("codec", codec, **CODECS[codec]))
        )
        return made
