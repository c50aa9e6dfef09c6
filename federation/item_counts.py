"""Ask every user once for a noised report of its items (see `fedrec.wire.item_counts`)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from exchanges import members, records
from exchanges.records import Content
from federation.directory import Directory, Share
from federation.exchange import Exchange, Ledger
from federation.versions import Frozen
from fedrec.core.errors import FederationError, PacketError
from fedrec.groupings.base import EVERYBODY
from fedrec.wire.item_counts import COUNTS, ItemCounting, estimate


class Counting(Exchange):
    """All users who are here report their items.

    The nodes' sums are whole numbers, so neither the layout nor their order matters. An answer is used if it speaks for
    exactly the users who live there and no item has more users than that.
    """

    ledger = Ledger.JOINING

    def __init__(self, n_items: int, counting: ItemCounting, frozen: Frozen, max_failures: float) -> None:
        """Of a catalogue of `n_items`, by these rules; `frozen` is what a node needs to answer."""
        super().__init__(members.Counting(n_items), "counting items", 0, 0, {EVERYBODY: frozen}, max_failures)
        self._counting = counting
        self._total: NDArray[np.int64] = np.zeros(n_items, dtype=np.int64)

    @override
    def participants(self, directory: Directory) -> dict[int, Share]:
        self._total = np.zeros_like(self._total)
        return super().participants(directory)

    @override
    def take(self, node: int, answer: Content) -> None:
        users = len(self.shares[node].users)
        form = self.declared.up(self.participant(node))[records.COUNTS]
        packet = form.decode(answer.packet(records.COUNTS), phase=0, round=0)
        sums = packet.tensors[COUNTS].numpy()
        if packet.scalars[0] != users or (sums < 0).any() or (sums > users).any():
            raise PacketError(
                "wrong_counts",
                f"a node with {users} users reports {sums.min()} to {sums.max()} users an item, of {packet.scalars[0]}",
            )
        self._total += sums

    def estimate(self) -> Tensor:
        """How many users have each item, float64 [n_items]. Raises FederationError if nobody reported."""
        users = sum(len(self.shares[node].users) for node in self.taken)
        if not users:
            raise FederationError("no node reported its users' items; see the log above for why")
        return torch.from_numpy(estimate(self._counting, self._total, users))
