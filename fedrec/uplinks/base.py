"""The contract of an uplink: what of an update leaves a device, in which packet, and how long that is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedrec.codecs.base import Codec
from fedrec.codecs.rounding import RoundingCodec
from fedrec.core.registry import MemberConfig
from fedrec.core.tensors import Spec
from fedrec.stages.base import Stage
from fedrec.stages.contributions import Contributions
from fedrec.stages.rounding import Rounding
from fedrec.stages.rows import RowLimits

if TYPE_CHECKING:
    from fedrec.config.schema import RunConfig


Room = Callable[[NDArray[np.uint64]], NDArray[np.int64]]
"""Of users by their keys, the most bytes of the tensors in their packets: int64 [users], perhaps below 0."""


class Uplink(ABC):
    """A member of the family `uplink`.

    It says what is done to a user's changes on its device before they are added up (`stages`), and which codec makes
    the packet of a device that has one user (`packet`). Both belong together: the packet holds exactly what the stages
    leave, so that a node with many users, which adds up what theirs would have sent, comes to the same sum.

    Attributes:
        config: The member's configuration.
        codec: The run's codec, of the numbers in a packet.
        room: How long packets may be.
        packet: The codec of the packet of one user's update.
    """

    config_class: ClassVar[type[MemberConfig]]

    tells_rows: ClassVar[bool] = True
    """Whether a packet, or its length, tells which rows of a table, or how many, a user has changed. A sum whose noise
    is to hide that is refused then, and a node tells the bytes of its users' packets beside their sum."""

    def __init__(self, config: Any, codec: Codec, room: Room | None = None) -> None:
        """The uplink of a run.

        Args:
            config: The member's configuration.
            codec: The run's codec.
            room: How long packets may be, for members that can make them shorter; None: any length will do.
        """
        self.config = config
        self.codec = codec
        self.room = room
        self.packet = self.packet_codec(codec)

    @abstractmethod
    def packet_codec(self, codec: Codec) -> Codec:
        """The codec of the packet of one user's update, with the run's codec for its numbers."""

    def stages(self, row_limits: RowLimits | None) -> Sequence[Stage]:
        """What a user's changes go through on its device, the limits of rows among it.

        By default these limits, then the rounding of a lossy codec.
        """
        return [*([row_limits] if row_limits else []), *([self.rounding] if self.rounding else [])]

    @property
    def rounding(self) -> Rounding | None:
        """The rounding of the run's codec; None of an exact one."""
        return Rounding(self.codec) if isinstance(self.codec, RoundingCodec) else None

    @abstractmethod
    def sizes(self, given: Contributions) -> NDArray[np.int64]:
        """Bytes of the tensors in each user's own packet [users], after `stages`; of one who is not kept, of zeros."""

    def most(self, spec: Spec, changed: Mapping[str, int] | None) -> int:
        """The most bytes of the tensors in a packet of a user who changes at most so many rows of each table.

        None: of any number of rows.
        """
        return self.packet.size(spec)

    @classmethod
    def problems(cls, config: RunConfig) -> list[str]:
        """What is wrong with a configuration as a whole, one line each."""
        from fedrec.core.registry import privacies

        if cls.tells_rows and privacies.get(config.privacy.name)(config.privacy).hides_rows:
            return [cls.refusal(config.uplink.name)]
        return []

    @staticmethod
    def refusal(name: str) -> str:
        """Why a sum that is noised does not come in packets that tell rows."""
        return (
            f"uplink={name}: the chosen privacy noises the sum of updates, and a list of the rows that a user has "
            "changed, or its length, would tell beside it what the noise is to hide; give uplink=dense"
        )
