"""An in-process grid: the real ServerApp and ClientApp without a SuperLink, for quick work and tests."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from flwr.app import Context, Error, Message, RecordDict, UserConfigValue
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

log = logging.getLogger("fedrec")

_RUN_ID = 1
_SERVER_NODE = 1
_RAISED = 2  # the runtime's error code for a ClientApp that raised


class LocalGrid(Grid):
    """Nodes are contexts in this process; a message is answered as soon as it is pushed.

    A client that raises gives an error reply, as it does in the runtime.
    """

    def __init__(self, client_app: ClientApp, nodes: int | Sequence[Mapping[str, UserConfigValue]]) -> None:
        """Of so many nodes of a simulation, or one for each of the given node configurations."""
        if isinstance(nodes, int):
            nodes = [{"partition-id": partition, "num-partitions": nodes} for partition in range(nodes)]
        # A message takes its run and its sender from the identity of the process, which the runtime sets in its own.
        TaskIdentity.run_id = _RUN_ID
        TaskIdentity.task_id = _RUN_ID
        TaskIdentity.node_id = _SERVER_NODE
        self._app = client_app
        self._contexts = {
            node: Context(run_id=_RUN_ID, node_id=node, node_config=dict(config), state=RecordDict(), run_config={})
            for node, config in enumerate(nodes, _SERVER_NODE + 1)
        }
        self._replies: dict[str, Message] = {}
        self._pushed = 0

    def set_run(self, run: Run) -> None:
        """Nothing to do: there is one run."""

    @property
    def run(self) -> Run:
        """The one run."""
        return Run.create_empty(_RUN_ID)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message to a node."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes are always here."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Deliver the messages, run the client on each, and keep the replies."""
        ids = []
        for message in messages:
            self._pushed += 1
            # The runtime names a message when it is pushed; nothing public sets the name.
            message.metadata.__dict__["_message_id"] = f"local-{self._pushed}"
            ids.append(message.metadata.message_id)
            self._replies[message.metadata.message_id] = self.answer(message)
        return ids

    def answer(self, message: Message) -> Message:
        """A client's reply. To be overridden where messages or replies are to be seen, changed or lost."""
        try:
            return self._app(message, self._contexts[message.metadata.dst_node_id])
        except Exception as error:
            log.debug("a client raised", exc_info=error)
            return Message(Error(_RAISED, f"{type(error).__name__}: {error}"), reply_to=message)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that are ready."""
        return [self._replies.pop(name) for name in message_ids if name in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push and pull."""
        return self.pull_messages(self.push_messages(messages))
