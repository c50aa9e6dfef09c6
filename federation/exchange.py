"""Send messages and yield replies as they arrive, until all have come or the deadline has passed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

from fedrec.core.errors import FederationError

_FIRST_POLL = 0.005
_LONGEST_POLL = 0.5
_GRACE = 30.0


def exchange(grid: Grid, messages: Sequence[Message], timeout: float) -> Iterator[tuple[Message, Message]]:
    """Send messages and yield (message, reply) as replies arrive, for at most `timeout` seconds.

    A reply is matched by the message that it answers: an error reply may name another source than the node that was
    asked. What has not come by the deadline, or could not be sent, is simply not yielded.

    Raises FederationError if the runtime takes none of the messages, as it does with too large ones.
    """
    for message in messages:
        message.metadata.ttl = timeout + _GRACE  # a node that comes back later must not train on a round long past
    names = list(grid.push_messages(messages))
    if len(names) != len(messages):
        raise FederationError(
            f"the runtime took {len(names)} of {len(messages)} messages: they are larger than it allows (see its log "
            "above); send less, with a compressed embedding or without a warm-up"
        )
    waiting = {name: message for name, message in zip(names, messages, strict=True) if name}
    deadline = time.monotonic() + timeout
    pause = _FIRST_POLL
    while waiting:
        before = len(waiting)
        for reply in grid.pull_messages(list(waiting)):
            sent = waiting.pop(reply.metadata.reply_to_message_id, None)
            if sent is not None:
                yield sent, reply
        left = deadline - time.monotonic()
        if not waiting or left <= 0:
            return
        pause = _FIRST_POLL if len(waiting) < before else min(pause * 1.5, _LONGEST_POLL)
        time.sleep(min(pause, left))
