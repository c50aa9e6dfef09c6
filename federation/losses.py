"""What was of no use in a round: counted by name, with its bytes, and charged to no user."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

from flwr.app import Message

from exchanges.records import weight
from fedrec.core.errors import PacketError

log = logging.getLogger("fedrec")


class Losses:
    """Counts since they were last cleared, which the loop does when a round begins.

    Attributes:
        counts: What went wrong, by name.
        wasted: Bytes that were of no use, by name: of refused and late answers, and of what was sent again to nodes
            that had lost something (`resent`).
        slow: Nodes that need longer than others are given: `waited_for`, whose answers counted, and `left_out`.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.wasted: Counter[str] = Counter()
        self.slow: Counter[str] = Counter()

    def clear(self) -> None:
        """A new round begins."""
        for counter in (self.counts, self.wasted, self.slow):
            counter.clear()

    def refuse(self, node: int, error: PacketError, answer: Message) -> None:
        """An answer is of no use; it and its bytes are counted under the error's name, and the round goes on."""
        self.counts[error.reason] += 1
        self.wasted[error.reason] += weight(answer)
        log.warning("the reply of node %d is left out: %s", node, error)

    def record(self) -> dict[str, Any]:
        """For the round's line of the metrics."""
        wasted = {name: count for name, count in self.wasted.items() if count}
        return {"dropped_replies": dict(self.counts), "wasted_bytes": wasted, "slow_nodes": dict(self.slow)}
