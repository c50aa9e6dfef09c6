"""Ask every user once for a noised report of its items (see `fedrec.wire.item_counts`)."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from flwr.serverapp import Grid
from numpy.typing import NDArray
from torch import Tensor

from exchanges import records
from federation.meter import Meter
from federation.nodes import Nodes
from fedrec.core.errors import FederationError, PacketError
from fedrec.wire.item_counts import ItemCounting, estimate
from fedrec.wire.protocol import COUNTS, counts_format


class Rules(Protocol):
    """What of a strategy's configuration matters here."""

    @property
    def round_timeout(self) -> float:
        """Seconds to wait for the reports."""

    @property
    def max_failures(self) -> float:
        """Share of the nodes that may fail."""


def count_items(nodes: Nodes, grid: Grid, n_items: int, counting: ItemCounting, rules: Rules, meter: Meter) -> Tensor:
    """Ask all nodes that are here: the estimate of how many users have each item, float64 [n_items].

    The nodes' sums are whole numbers, so neither the layout nor their order matters. A reply is used if it speaks for
    exactly the users who live there and no item has more users than that; others are counted under their reason. The
    meter is told what each user who is in the estimate would have sent as a device of its own.

    Raises FederationError if too many fail.
    """
    fmt = counts_format(n_items)
    shares = nodes.directory.shares(nodes.directory.here)
    fields: dict[str, records.Field] = {"phase": 0, "round": 0}
    messages = [nodes.message(node, records.COUNT, fields, {}) for node in shares]
    total = np.zeros(n_items, dtype=np.int64)
    reported: list[NDArray[np.int64]] = []
    for reply in nodes.collect(grid, messages, rules.round_timeout):
        share = shares[nodes.sender(reply)]
        try:
            packet = fmt.decode(records.unpack(reply.content).packet(records.COUNTS), phase=0, round=0)
            sums = packet.tensors[COUNTS].numpy()
            if packet.scalars[0] != len(share.users) or (sums < 0).any() or (sums > len(share.users)).any():
                raise PacketError(
                    "wrong_counts",
                    f"a node with {len(share.users)} users reports {sums.min()} to {sums.max()} users an item, "
                    f"of {packet.scalars[0]}",
                )
        except PacketError as error:
            nodes.refuse(nodes.sender(reply), error, reply)
            continue
        total += sums
        reported.append(share.users)
    nodes.give_up_if_too_many_failed("counting items", len(shares), len(reported), rules.max_failures)
    if not reported:
        raise FederationError("no node reported its users' items; see the log above for why")
    users = np.concatenate(reported)
    meter.reported(users, fmt.size())
    return torch.from_numpy(estimate(counting, total, len(users)))
