"""What one node may be: how many users it may name, and for how much of a mean it counts.

Users are not proved: a registered node may name as many as it likes, and what they send and how they are ranked is its
word. So it is bounded what a node's word is worth. A simulation, whose nodes are one person's, has no such bounds, and
its result does not depend on where users live.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from federation.directory import Directory
from fedrec.config.schema import NodeLimits
from fedrec.core.errors import PacketError

_FEW = 3
"""Nodes below which none counts less: of two neither can be outvoted."""

_LEAST_GROWTH = 10
"""Names that any node may bring later: a phone that was set up anew has another."""

_ROUNDED = 1 + 1e-9


class NamedUsers:
    """How many names each node has brought, so that no node can bring new ones in every round.

    A name is never forgotten by the server, for its user may come back.
    """

    def __init__(self, limits: NodeLimits, directory: Directory) -> None:
        """Of a run in whose `directory` all names are that were ever accepted."""
        self._limits = limits
        self._directory = directory
        self._left: dict[int, float] = {}

    def require(self, node: int, keys: NDArray[np.uint64]) -> None:
        """Count the names (uint64 [users]) of a node that joins.

        Raises:
            PacketError: `too_many_users`: more than a node may have; `too_many_new_users`: it has joined before, and
                brings more names that the server has never seen than it may. Nothing is counted then.
        """
        limits = self._limits
        if len(keys) > limits.users:
            raise PacketError(
                "too_many_users",
                f"it names {len(keys)} users, a node may have {limits.users}; if they are real, raise "
                "federation.max_node_users",
            )
        if node not in self._left:
            self._left[node] = max(_LEAST_GROWTH, limits.growth * len(keys))
            return
        new = self._directory.unknown(keys)
        if new > self._left[node]:
            raise PacketError(
                "too_many_new_users",
                f"it names {new} users who have never been here, and may bring {self._left[node]:.0f} more in a run; "
                "if they are real, raise federation.max_node_growth",
            )
        self._left[node] -= new


def parts_that_count(users: Mapping[int, int], share: float) -> dict[int, float]:
    """The part of each node's users that counts (1: all), so that no node has more than `share` of those that do.

    Args:
        users: Of each node.
        share: The largest share; with n nodes never below 1 / n. Of fewer than three nodes all users count.
    """
    if len(users) < _FEW:
        return dict.fromkeys(users, 1.0)
    most = _most(sorted(users.values(), reverse=True), max(share, 1 / len(users)))
    return {node: min(1.0, most / count) if count else 1.0 for node, count in users.items()}


def _most(sizes: list[int], share: float) -> float:
    """The largest c with c <= share * (the sum of all sizes, each cut off at c); sizes descend, share >= 1 / n."""
    cut, rest = 0, sum(sizes)
    while sizes[cut] * (1 - share * cut) > share * rest * _ROUNDED:  # c = share * (cut * c + rest) is below this size
        rest -= sizes[cut]
        cut += 1
    return share * rest / (1 - share * cut)
