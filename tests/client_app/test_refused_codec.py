"""A codec that loses something without saying how numbers are rounded is refused: no engine could apply it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest

from client_app.training.cohort import CohortEngine
from client_app.training.engine import Engine, Limits
from client_app.training.oracle import OracleEngine
from fedrec.backbones.fedmf import FedMF
from fedrec.codecs.float32 import Float32Codec, Float32Config
from fedrec.config.describe import load_member
from fedrec.core.errors import ConfigError
from fedrec.core.registry import MemberConfig
from fedrec.data.negatives import NegativeSampler
from fedrec.optim.paper import PaperRecipe
from fedrec.privacy.none import NoPrivacy, NoPrivacyConfig


@dataclass(frozen=True)
class CutConfig(MemberConfig):
    name: Literal["cut"]


class CutCodec(Float32Codec):
    """Its contract says that it is not exact, and it does not derive from `RoundingCodec`."""

    config_class = CutConfig  # type: ignore[assignment]
    exact = False


@pytest.mark.parametrize("kind", [OracleEngine, CohortEngine])
def test_a_lossy_codec_that_cannot_round_updates_is_refused(kind: type[Engine]) -> None:
    recipe = PaperRecipe(load_member("optim", "paper"), FedMF.advice)
    given = recipe, NegativeSampler(np.arange(9)), NoPrivacy(NoPrivacyConfig("none")), Limits(3, 1e9)
    with pytest.raises(ConfigError, match=r"codec=cut: CutCodec is not exact and does not derive from RoundingCodec"):
        kind(*given, codec=CutCodec(CutConfig("cut")))
    assert kind(*given, codec=Float32Codec(Float32Config("float32"))).codec is None
