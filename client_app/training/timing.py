"""How long the users of a node take in a round, by the simulated network; and who misses its deadline."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from fedrec.networks.simulated import SimulatedNetwork
from fedrec.stages.contributions import Contributions
from fedrec.wire.clock import Clock
from fedrec.wire.updates import LATE


class Timer:
    """Times each user by itself, so that it does not matter who else lives on its node.

    A user's device downloads, trains and uploads, one after the other (`SimulatedNetwork.seconds`). Who misses the
    deadline is left out, as if its packet had never come.
    """

    def __init__(
        self,
        network: SimulatedNetwork,
        keys: NDArray[np.uint64],
        down: NDArray[np.int64],
        steps: int,
        least_up: int,
        head: int,
    ) -> None:
        """Of users who have not trained yet.

        Args:
            network: Of the run.
            keys: uint64 [users], different keys of the users.
            down: int64 [users], bytes that each one's device downloads in this round.
            steps: Local steps of a round.
            least_up: Bytes of the packet of a user who has nothing to send.
            head: Bytes of a packet beside its tensors.
        """
        self._network = network
        self._order = np.argsort(keys)
        self._keys = keys[self._order]
        self._down = down[self._order]
        self._steps = steps
        self._head = head
        idle = np.zeros(len(keys))
        self._seconds = network.seconds(self._keys, self._down, np.full(len(keys), least_up), idle)
        self._late = 0

    def __call__(self, given: Contributions, tensors: NDArray[np.int64]) -> Contributions:
        """What is in time of what users give, after all stages on their devices.

        Args:
            given: Of some of the users.
            tensors: int64 [U], bytes of the tensors in each one's packet.
        """
        places = np.searchsorted(self._keys, given.keys)
        work = given.examples.cpu().numpy() * self._steps
        seconds = self._network.seconds(given.keys, self._down[places], self._head + tensors, work)
        self._seconds[places] = seconds
        late = torch.from_numpy(seconds > self._network.deadline).to(given.kept.device)
        self._late += int((late & given.kept).sum())
        return given.dropping(late, LATE)

    @property
    def clock(self) -> Clock:
        """What the users took."""
        slowest = float(self._seconds.max(initial=0.0))
        return Clock(min(slowest, self._network.deadline), self._late)
