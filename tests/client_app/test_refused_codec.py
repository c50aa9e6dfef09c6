"""A codec that loses something without saying how numbers are rounded is refused: no engine could apply it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest

from fedrec.codecs.float32 import Float32Codec, Float32Config
from fedrec.core.errors import ConfigError
from fedrec.core.registry import MemberConfig
from fedrec.stages.chain import Stages
from fedrec.stages.limits import Limits


@dataclass(frozen=True)
class CutConfig(MemberConfig):
    name: Literal["cut"]


class CutCodec(Float32Codec):
    """Its contract says that it is not exact, and it does not derive from `RoundingCodec`."""

    config_class = CutConfig  # type: ignore[assignment]
    exact = False


def test_a_lossy_codec_that_cannot_round_updates_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"codec=cut: CutCodec is not exact and does not derive from RoundingCodec"):
        Stages([], CutCodec(CutConfig("cut")), Limits(3, 1e9))
    plain = Float32Codec(Float32Config("float32"))
    assert Stages([], plain, Limits(3, 1e9)).codec is plain
