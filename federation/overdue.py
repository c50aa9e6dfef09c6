"""Messages whose answers nobody waits for any more: late answers are noticed and counted, and never used."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from flwr.app import Message
from flwr.serverapp import Grid

_PATIENCE = 600.0


class Overdue:
    """The messages that may still be answered."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[int, float]] = {}

    def expect(self, messages: Iterable[Message], timeout: float) -> None:
        """Nobody waits for the answers to these messages any more, which had `timeout` seconds."""
        until = time.monotonic() + timeout + _PATIENCE
        for message in messages:
            if name := message.metadata.message_id:  # one that the runtime did not take has none
                self._open[name] = (message.metadata.dst_node_id, until)

    def came(self, grid: Grid) -> Iterator[tuple[int, Message]]:
        """The answers that have come since, each with the node that was asked."""
        now = time.monotonic()
        self._open = {name: (node, until) for name, (node, until) in self._open.items() if until > now}
        for reply in grid.pull_messages(list(self._open)) if self._open else ():
            if (found := self._open.pop(reply.metadata.reply_to_message_id, None)) is not None:
                yield found[0], reply
