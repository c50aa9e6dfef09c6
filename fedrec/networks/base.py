"""The contract of a network: what is known of each user's device, and how long its reply may be."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from annotated_types import Ge, Gt, Le
from numpy.typing import NDArray
from typing_extensions import override

from fedrec.core.bounds import MOST_BYTES, MOST_MEGABITS, MOST_SECONDS
from fedrec.core.registry import MemberConfig
from fedrec.core.rng import counter_uniform, derive

Megabits = Annotated[float, Gt(0), Le(MOST_MEGABITS)]
"""A bandwidth: millions of bits in a second."""

BYTES_A_SECOND = 1e6 / 8
"""Of one megabit in a second."""


class Network(ABC):
    """A member of the family `network`.

    All that it says of a user's device is a function of public numbers: the user's key, the run's seed, and what the
    device's node says of it. A device works it out for itself, the server comes to the same, and any layout of the
    users on nodes does.
    """

    config_class: ClassVar[type[MemberConfig]]

    def __init__(self, config: Any, seed: int) -> None:
        """With the run's public seed."""
        self.config = config
        self.seed = seed

    @property
    def limits_replies(self) -> bool:
        """Whether a reply has a budget, so that a device has to be told of the network."""
        return False

    @property
    def availability(self) -> float:
        """The share of the rounds in which a device is there."""
        return 1.0

    def there(self, keys: NDArray[np.uint64], round: int) -> NDArray[np.bool_]:
        """Whose device is there in a round, bool [users], drawn by (seed, key, round); `keys`: uint64 [users]."""
        return counter_uniform(derive(self.seed, "network", "there"), keys, round) < self.availability

    def reply_budget(self, keys: NDArray[np.uint64], grade: str = "") -> NDArray[np.int64]:
        """The most bytes that each user's reply to one round may have, all of its packet: int64 [users].

        Whoever makes a reply whose length it can choose, chooses one within the budget. A reply that has one length
        only is sent as it is.

        Args:
            keys: uint64 [users], their opaque keys.
            grade: What their node says of its device (`grade` in the node configuration); empty: nothing.

        Returns:
            At least 1; `MOST_BYTES` for a user whose reply may have any length.
        """
        return np.full(len(keys), MOST_BYTES, dtype=np.int64)


@dataclass(frozen=True)
class UplinkConfig(MemberConfig):
    """What the configurations of networks have in common that know an uplink.

    Attributes:
        reply_bytes: The most bytes of a reply, whatever the device (null: any number).
        reply_seconds: Seconds that sending the reply may take, so that a slow device sends less (null: any time).
    """

    reply_bytes: Annotated[int, Ge(1), Le(MOST_BYTES)] | None
    reply_seconds: Annotated[float, Gt(0), Le(MOST_SECONDS)] | None


class UplinkNetwork(Network):
    """A network that knows how fast each user's device sends."""

    @abstractmethod
    def uplink(self, keys: NDArray[np.uint64], grade: str = "") -> NDArray[np.float64]:
        """What each user's device sends in a second, in megabits: float64 [users]; the arguments of `reply_budget`."""

    @property
    @override
    def limits_replies(self) -> bool:
        return self.config.reply_bytes is not None or self.config.reply_seconds is not None

    @override
    def reply_budget(self, keys: NDArray[np.uint64], grade: str = "") -> NDArray[np.int64]:
        """The smaller one of `reply_bytes` and what the uplink carries in `reply_seconds`."""
        config = self.config
        most = float(config.reply_bytes or MOST_BYTES)
        carried = self.uplink(keys, grade) * BYTES_A_SECOND * (config.reply_seconds or np.inf)
        return np.clip(carried, 1.0, most).astype(np.int64)
