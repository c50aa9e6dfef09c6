"""The rows that changed, where that is shorter than all of them: the same update to the bit, in fewer bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from fedrec.codecs.base import Codec
from fedrec.codecs.sparse import SparseCodec
from fedrec.core.registry import MemberConfig, uplinks
from fedrec.core.tensors import Spec
from fedrec.stages.contributions import Contributions
from fedrec.uplinks.base import Uplink


@dataclass(frozen=True)
class SparseConfig(MemberConfig):
    """Configuration of `sparse`."""

    name: Literal["sparse"]


class ListedRows(Uplink):
    """An uplink whose packets list rows of tables with their values."""

    packet: SparseCodec

    @override
    def packet_codec(self, codec: Codec) -> SparseCodec:
        return SparseCodec(codec)

    @override
    def sizes(self, given: Contributions) -> NDArray[np.int64]:
        changed = {name: given.changed_rows(name) for name in given.tables}
        of_each = [{name: int(rows[user]) for name, rows in changed.items()} for user in range(len(given))]
        return np.array([self.packet.size_of_rows(given.spec, rows) for rows in of_each], dtype=np.int64)

    @override
    def most(self, spec: Spec, changed: Mapping[str, int] | None) -> int:
        return self.packet.size(spec) if changed is None else self.packet.size_of_rows(spec, changed)


@uplinks.register("sparse")
class SparseUplink(ListedRows):
    """The changed rows in the run's codec, by their numbers (`fedrec.codecs.sparse`)."""

    config_class = SparseConfig
