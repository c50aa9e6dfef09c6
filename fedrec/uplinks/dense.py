"""All rows of all tables, changed or not: every packet is as long as every other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from fedrec.codecs.base import Codec
from fedrec.core.registry import MemberConfig, uplinks
from fedrec.stages.contributions import Contributions
from fedrec.uplinks.base import Uplink


@dataclass(frozen=True)
class DenseConfig(MemberConfig):
    """Configuration of `dense`."""

    name: Literal["dense"]


@uplinks.register("dense")
class DenseUplink(Uplink):
    """The update in the run's codec."""

    config_class = DenseConfig
    tells_rows = False

    @override
    def packet_codec(self, codec: Codec) -> Codec:
        return codec

    @override
    def sizes(self, given: Contributions) -> NDArray[np.int64]:
        return np.full(len(given), self.codec.size(given.spec), dtype=np.int64)
