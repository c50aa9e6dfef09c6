"""The server's side of the conversation: who is here, what each node already holds, and who answers what."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedrec.errors import FederationError, PacketError
from fedrec.keys import keys_digest
from fedrec.protocol import Setup, code_digest
from strategies.directory import Directory
from strategies.exchange import exchange
from strategies.records import (
    ENROLL,
    FROZEN,
    KEYS,
    MERGED,
    MISSING,
    NAMED,
    PROBLEM,
    STORES_LOST,
    UNSHARED,
    VERSIONS,
    Content,
    Field,
    pack,
    size,
    unpack,
)
from strategies.versions import Merges

log = logging.getLogger("fedrec")

_ENROLL_TIMEOUT = 120.0
_ENROLL_PATIENCE = 0.1
"""Seconds more for every node: Flower's simulation serves some ten to a hundred calls a second among thousands."""
_PROBLEM_SHOWN = 2000
KEY_BYTES = 8
_POLL = 0.1


class Nodes:
    """The nodes of a federation.

    Attributes:
        directory: The users, and the node each lives on.
        once: What every node must hold by now, as wrapped packets by the digest of their content. A node gets those
            that it is not known to hold along with the next message to it.
        merges: What was merged into the base table among them: the shorter way for a node that holds an older version.
        enrolment_bytes: What one user's device moves to join: the setup down (and the list of items), its key up.
        counts: What went wrong since it was last cleared, by name; the caller clears it every round.
    """

    def __init__(self, setup: Setup, item_list: Array | None = None) -> None:
        """Of a run whose clients are told `setup`; sites that have none yet are sent `item_list`, wrapped."""
        self.directory = Directory()
        self.once: dict[str, Array] = {}
        self.merges = Merges()
        self.counts: Counter[str] = Counter()
        self._setup = setup.to_json()
        self._simulated = setup.simulation is not None
        self._catalogue = setup.catalogue
        self._item_list = item_list
        self._named: dict[int, str] = {}
        self.enrolment_bytes = len(setup.device_json().encode()) + KEY_BYTES + (size(item_list) if item_list else 0)
        self._holds: dict[int, set[str]] = {}
        self._refused: set[int] = set()
        self._senders: dict[str, int] = {}

    def wait(self, grid: Grid, expected: int, timeout: float) -> None:
        """Wait until `expected` nodes are connected. Raises FederationError if they do not come."""
        deadline = time.monotonic() + timeout
        while (connected := len(list(grid.get_node_ids()))) < expected:
            if time.monotonic() > deadline:
                raise FederationError(
                    f"{connected} of {expected} nodes connected within {timeout:.0f} s: start the missing SuperNodes, "
                    "or make simulation.nodes the number there are"
                )
            time.sleep(_POLL)

    def enrol(self, grid: Grid) -> None:
        """Ask nodes seen for the first time who lives there, and forget those that have gone.

        Raises FederationError if nobody has joined, or a worker of a simulation does not see the server's folders.
        """
        connected = set(grid.get_node_ids())
        self._refused &= connected
        for node in self.directory.nodes:
            if node not in connected:
                self._forget(node)
        new = sorted(connected - set(self.directory.nodes) - self._refused)
        messages = [Message(pack({"setup": self._setup}), node, ENROLL) for node in new]
        joined: dict[int, NDArray[np.uint64]] = {}
        timeout, silent = _ENROLL_TIMEOUT + _ENROLL_PATIENCE * len(new), set(new)
        for sent, reply in self._enrolled(grid, messages, timeout):
            silent.discard(sent.metadata.dst_node_id)
            if (keys := self._keys(sent.metadata.dst_node_id, reply)) is not None:
                joined[sent.metadata.dst_node_id] = keys
        if silent:
            self.counts["enrol_no_answer"] += len(silent)
            log.warning(
                "%d of %d nodes did not say in %.0f s who lives there: the round goes on without their users, and they "
                "are asked again in the next",
                len(silent),
                len(new),
                timeout,
            )
        # In the order of their users' keys: a node's id is drawn anew in every run.
        for node in sorted(joined, key=lambda node: int(joined[node].min())):
            try:
                replaced = self.directory.join(node, joined[node])
            except FederationError as error:
                self.counts["double_users"] += 1
                log.warning("node %d is left out: %s", node, error)
                continue
            for other in replaced:
                self.counts["double_users"] += 1
                self._forget(other)
                self._refused.add(other)  # until it has been away: else the two would replace each other every round
                log.warning("node %d names users of node %d: it has come in its place", node, other)
            self._holds[node] = set()
            self._named[node] = keys_digest(joined[node])
        if not len(self.directory):
            raise FederationError(
                f"none of {len(connected)} nodes has joined with users ({dict(self.counts)}): see the log above for why"
            )

    def _enrolled(self, grid: Grid, messages: list[Message], timeout: float) -> Iterator[tuple[Message, Message]]:
        """The nodes' answers; sites that have not got the list of items are sent it and asked once more."""
        again: list[Message] = []
        for sent, reply in exchange(grid, messages, timeout) if messages else ():
            if self._item_list is None or reply.has_error() or self._missing(reply) != self._catalogue:
                yield sent, reply
                continue
            content = pack({"setup": self._setup}, {FROZEN + self._catalogue: self._item_list})
            again.append(Message(content, sent.metadata.dst_node_id, ENROLL))
        if again:
            yield from exchange(grid, again, timeout)

    def _keys(self, node: int, reply: Message) -> NDArray[np.uint64] | None:
        if reply.has_error():
            self.counts["enrol_failed"] += 1
            log.warning("node %d could not be enrolled: %s", node, _last_line(reply))
            return None
        try:
            content = unpack(reply.content)
            self._require_shared(content)
            if PROBLEM in content.fields:
                self.counts["misconfigured"] += 1
                self._refused.add(node)  # it is asked again when it has been restarted
                log.warning("node %d cannot take part: %s", node, str(content.fields[PROBLEM])[:_PROBLEM_SHOWN])
                return None
            code, keys = content.text("code"), content.array(KEYS)
        except PacketError as error:
            self.refuse(node, error)
            return None
        if code != code_digest():
            self.counts["other_code"] += 1
            self._refused.add(node)
            log.warning(
                "node %d runs other code (%s) than this server (%s): install the same fedrec on both; a simulation "
                "started in a folder that holds other packages of the same names imports those",
                node,
                code,
                code_digest(),
            )
            return None
        if keys.dtype != np.uint64 or keys.ndim != 1:
            came = f"{keys.dtype} {keys.shape}"
            self.refuse(node, PacketError("malformed", f"user keys are a list of uint64, not {came}"))
            return None
        if not keys.size:
            self._refused.add(node)  # nobody lives there: it need not be asked in every round
            return None
        return keys.astype(np.uint64)

    def message(
        self,
        node: int,
        message_type: str,
        fields: Mapping[str, Field],
        packets: Mapping[str, bytes | Array],
        arrays: Mapping[str, NDArray[np.generic]] | None = None,
    ) -> Message:
        """A message to a node, with what it does not yet hold."""
        if not self._simulated:
            fields = {**fields, NAMED: self._named[node]}
        held = self._holds[node]
        lacking = {digest: packet for digest, packet in self.once.items() if digest not in held}
        since = self.merges.since(held) if self.merges.log and self.merges.log[-1].after in lacking else ()
        if since:
            del lacking[since[-1].after]
            fields = {**fields, VERSIONS: " ".join([since[0].before, *(merged.after for merged in since)])}
        missing = {FROZEN + digest: packet for digest, packet in lacking.items()}
        missing |= {MERGED + merged.after: merged.packet for merged in since}
        return Message(pack(fields, {**packets, **missing}, arrays), node, message_type)

    def sender(self, reply: Message) -> int:
        """The node that gave a reply which `collect` has yielded."""
        return self._senders[reply.metadata.reply_to_message_id]

    def refuse(self, node: int, error: PacketError) -> None:
        """A reply is of no use; it is counted under the error's name, and the round goes on."""
        self.counts[error.reason] += 1
        log.warning("the reply of node %d is left out: %s", node, error)

    def collect(self, grid: Grid, messages: Iterable[Message], timeout: float) -> Iterator[Message]:
        """Send and yield the replies as they come; nodes that lack something are sent it and asked once more.

        Errors and silence are counted (`failed`, `no_answer`, `frozen_missing`), never yielded.
        """
        deadline = time.monotonic() + timeout
        first, again = list(messages), list[Message]()
        silent = {message.metadata.dst_node_id for message in first}
        self._senders.clear()
        for attempt in (first, again):
            for sent, reply in exchange(grid, attempt, max(0.0, deadline - time.monotonic())) if attempt else ():
                node = sent.metadata.dst_node_id
                silent.discard(node)
                if reply.has_error():
                    self.counts["failed"] += 1
                    log.warning("node %d failed: %s", node, _last_line(reply))
                elif (missing := self._missing(reply)) is None:
                    self._holds[node].update(self.once)
                    self._senders[reply.metadata.reply_to_message_id] = node
                    yield reply
                elif missing in (NAMED, self._catalogue):
                    self.counts["users_changed"] += 1
                    log.warning("node %d has other users than it had: they are asked for anew", node)
                    self._forget(node)
                elif attempt is first:
                    self._holds[node].clear()
                    again.append(Message(self._completed(sent.content), node, sent.metadata.message_type))
                    log.info("node %d lacks %s and is sent it again", node, missing)
                else:
                    self.counts["frozen_missing"] += 1
                    self._forget(node)
        if silent:
            self.counts["no_answer"] += len(silent)

    def give_up_if_too_many_failed(self, what: str, asked: int, accepted: int, max_failures: float) -> None:
        """Raise FederationError if, of the nodes `asked`, a larger share than `max_failures` was of no use."""
        failed = asked - accepted
        if failed > max_failures * asked:
            raise FederationError(
                f"{what}: {failed} of {asked} nodes failed ({dict(self.counts)}), more than "
                f"strategy.max_failures={max_failures} allows; see the log above for why"
            )

    def _completed(self, content: RecordDict) -> RecordDict:
        """A message's content with the setup and all that is sent once; the message that was sent stays as it is."""
        extra = pack({"setup": self._setup}, {FROZEN + digest: packet for digest, packet in self.once.items()})
        arrays = {
            name: ArrayRecord(dict(content.array_records[name]) | dict(record))
            for name, record in extra.array_records.items()
        }
        fields = {
            name: ConfigRecord(dict(content.config_records[name]) | dict(record))
            for name, record in extra.config_records.items()
        }
        return RecordDict({**arrays, **fields})

    def _missing(self, reply: Message) -> str | None:
        """What the node says it lacks, if that is its answer."""
        try:
            content = unpack(reply.content)
        except PacketError:
            return None
        self._require_shared(content)
        if content.fields.get(STORES_LOST):
            self.counts["store_damaged"] += 1
            log.warning("node %d found its users' store damaged: they start anew", reply.metadata.src_node_id)
        missing = content.fields.get(MISSING)
        return missing if isinstance(missing, str) else None

    def _require_shared(self, content: Content) -> None:
        """Raise a FederationError if a worker of the simulation sees other folders: every node may be given to it.

        Real devices have folders of their own, and could not end a run by saying so.
        """
        if self._simulated and UNSHARED in content.fields:
            raise FederationError(str(content.fields[UNSHARED]))

    def _forget(self, node: int) -> None:
        self.directory.leave(node)
        self._holds.pop(node, None)
        self._named.pop(node, None)


def _last_line(reply: Message) -> str:
    """What a failed reply says; of a stack trace, the error itself."""
    lines = (reply.error.reason or "").strip().splitlines()
    return lines[-1] if lines else f"error {reply.error.code}"
