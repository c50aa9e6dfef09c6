"""The contract of a downlink: how the trained tables travel to devices."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from fedrec.codecs.base import Codec
from fedrec.core.registry import MemberConfig, codecs, embeddings, strategies
from fedrec.core.tensors import Tensors

if TYPE_CHECKING:
    from fedrec.config.schema import RunConfig


class Downlink(ABC):
    """A member of the family `downlink`.

    Tables travel whole with every message, or devices hold them, and every so many rounds a step brings what they hold
    closer to the server's tables. What a step makes of them is what its packet decodes to, on the server as on every
    device, so that nothing drifts apart; what it leaves out stays the difference between the two, and so part of the
    next step (error feedback: Seide et al., Interspeech 2014).

    Attributes:
        config: The member's configuration.
        codec: The run's codec, of the numbers in a packet.
    """

    config_class: ClassVar[type[MemberConfig]]

    def __init__(self, config: Any, codec: Codec) -> None:
        """The downlink of a run with this codec."""
        self.config = config
        self.codec = codec

    @property
    @abstractmethod
    def every(self) -> int:
        """Rounds between two steps; 0: there are none, tables travel whole with every message."""

    @property
    def packet(self) -> Codec:
        """The codec of the packet of a step: by default that of the run."""
        return self.codec

    def coded(self, change: Tensors, seed: int) -> Tensors:
        """What a step sends of the difference between the server's tables and those that devices hold; by default all.

        Args:
            change: The difference, by table [rows, width], finite.
            seed: Of what is drawn.
        """
        return change

    @classmethod
    def problems(cls, config: RunConfig) -> list[str]:
        """What is wrong with a configuration as a whole, one line each."""
        if not cls(config.downlink, codecs.get(config.codec.name)(config.codec)).every:
            return []
        trained = [phase.embedding for phase in strategies.get(config.strategy.name).phases(config)]
        return [
            f"downlink={config.downlink.name}: devices hold the tables that are trained, and with "
            f"embedding={embedding.name} the frozen table under them as well, which who missed too many steps would "
            "download again each time; train a table that stands alone (strategy=full, or embedding.variant=C), or "
            "give downlink=dense"
            for embedding in trained
            if embeddings.get(embedding.name)(embedding, 1, 1).uses_base
        ]
