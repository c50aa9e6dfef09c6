"""The nodes as the server sees them: which are here, what each already holds, and which reply is whose."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
from flwr.app import Array, Message
from flwr.serverapp import Grid
from numpy.typing import NDArray

from exchanges.records import (
    ENROLL,
    FROZEN,
    MISSING,
    NAMED,
    RESUMED,
    UNSHARED,
    Content,
    Field,
    joined,
    pack,
    shown,
    size,
    unpack,
    weight,
)
from federation import said
from federation.directory import Directory
from federation.enrolment import KEY_BYTES, LASTING, require_short, user_keys
from federation.exchange import exchange
from federation.overdue import Overdue
from federation.silence import Silences
from federation.versions import Merges, lacking
from fedrec.core.errors import FederationError, PacketError, RoundError
from fedrec.core.keys import keys_digest
from fedrec.wire.protocol import Setup

log = logging.getLogger("fedrec")

_ENROLL_TIMEOUT = 120.0
_ENROLL_PATIENCE = 0.1
"""Seconds more for every node: Flower's simulation serves some ten to a hundred calls a second among thousands."""
_ENROLL_LATER = 30.0
"""Seconds for a node that comes while others train already."""
_POLL = 0.1
_WAIT, _LONGEST_WAIT = 2.0, 30.0


class Nodes:
    """The nodes of a federation.

    Attributes:
        directory: The users, and the node each lives on.
        once: What every node must hold by now, as wrapped packets by the digest of their content. A node gets those
            that it is not known to hold along with the next message to it.
        merges: What was merged into the base table among them: the shorter way for a node that holds an older version.
        enrolment_bytes: What one user's device moves to join: the setup down (and the list of items), its key up.
        counts: What went wrong since it was last cleared, by name; the caller clears it every round.
        wasted: Bytes that were of no use since then, by name: of refused and late replies, and of what was sent again
            to nodes that had lost something (`resent`).
        largest_reply: Bytes that a reply may have at most; anything longer is refused unread.
        resumes: The rounds after which the run went on when it was resumed; nodes forget what they trained since.
    """

    def __init__(self, setup: Setup, item_list: Array | None = None, silent_rounds: int = 2) -> None:
        """Of a run whose clients are told `setup`.

        Args:
            setup: What every client is told.
            item_list: The public list of items, wrapped, for sites that have none yet.
            silent_rounds: Unanswered messages in a row after which a node rests.
        """
        self.directory = Directory()
        self.once: dict[str, Array] = {}
        self.merges = Merges()
        self.counts: Counter[str] = Counter()
        self.wasted: Counter[str] = Counter()
        self.largest_reply: int | None = None
        self.resumes: tuple[int, ...] = ()
        self._silences = Silences(silent_rounds)
        self._overdue = Overdue()
        self._setup = setup.to_json()
        self._simulated = setup.simulation is not None
        self._catalogue = setup.catalogue
        self._item_list = item_list
        self._named: dict[int, str] = {}
        self.enrolment_bytes = len(setup.device_json().encode()) + KEY_BYTES + (size(item_list) if item_list else 0)
        self._holds: dict[int, set[str]] = {}
        self._left: dict[str, set[str]] = {}  # what those that have gone held, by the digest of their users' keys
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

    def gather(self, grid: Grid, least: int, timeout: float) -> None:
        """Begin a round: enrol who is new, and wait until `least` nodes with users are here.

        Raises FederationError if they do not come within `timeout` seconds; in a simulation nobody comes later.
        """
        deadline, pause = time.monotonic() + timeout, _WAIT
        self._silences.round_begins(set(grid.get_node_ids()))
        self._take_late(grid)
        while True:
            self.enrol(grid)
            if (here := len(self.directory.nodes)) >= least:
                return
            left = deadline - time.monotonic()
            if self._simulated or left <= 0:
                raise FederationError(
                    f"{here or 'none'} of {len(list(grid.get_node_ids()))} nodes has joined with users, "
                    f"strategy.min_nodes={least} are needed, and no more came in {timeout:.0f} s "
                    f"({dict(self.counts)}): see the log above for why"
                )
            time.sleep(min(pause, left))
            pause = min(1.5 * pause, _LONGEST_WAIT)

    def _take_late(self, grid: Grid) -> None:
        """Count the replies that came after their round was over; nodes that send such are there again."""
        for node, reply in self._overdue.came(grid):
            if not reply.has_error():
                self.counts["late"] += 1
                self.wasted["late"] += weight(reply.content)
                self._silences.heard(node)
                log.info("node %d answered too late: its answer is left out", node)

    def enrol(self, grid: Grid) -> None:
        """Ask nodes seen for the first time who lives there, and forget those that have gone.

        Nodes that rest are not asked. Raises FederationError if a worker of a simulation does not see the server's
        folders.
        """
        connected = set(grid.get_node_ids())
        self._refused &= connected
        for node in self.directory.nodes:
            if node not in connected:
                self._forget(node)
        new = sorted(connected - set(self.directory.nodes) - self._refused - self._silences.resting)
        messages = [Message(pack(self._invitation()), node, ENROLL) for node in new]
        came: dict[int, NDArray[np.uint64]] = {}
        later = len(self.directory) and not self._simulated
        timeout, silent = (_ENROLL_LATER if later else _ENROLL_TIMEOUT) + _ENROLL_PATIENCE * len(new), set(new)
        for sent, reply in self._enrolled(grid, messages, timeout):
            silent.discard(sent.metadata.dst_node_id)
            self._silences.heard(sent.metadata.dst_node_id)
            if (keys := self._keys(sent.metadata.dst_node_id, reply)) is not None:
                came[sent.metadata.dst_node_id] = keys
        if silent:
            self.counts["enrol_no_answer"] += len(silent)
            self._let_rest(silent)
            said = "%d of %d nodes did not say in %.0f s who lives there: the round goes on without their users"
            log.warning(said + ", and they are asked again in the next", len(silent), len(new), timeout)
        # In the order of their users' keys: a node's id is drawn anew in every run.
        for node in sorted(came, key=lambda node: int(came[node].min())):
            try:
                replaced = self.directory.join(node, came[node])
            except FederationError as error:
                self.counts["double_users"] += 1
                log.warning("node %d is left out: %s", node, error)
                continue
            for other in replaced:
                self.counts["double_users"] += 1
                self._forget(other)
                self._refused.add(other)  # until it has been away: else the two would replace each other every round
                log.warning("node %d names users of node %d: it has come in its place", node, other)
            self._named[node] = named = keys_digest(came[node])
            self._holds[node] = self._left.pop(named, set())

    def _invitation(self) -> dict[str, Field]:
        """What a node is told that is to join."""
        resumed: dict[str, Field] = {RESUMED: " ".join(map(str, self.resumes))} if self.resumes else {}
        return {"setup": self._setup, **resumed}

    def _enrolled(self, grid: Grid, messages: list[Message], timeout: float) -> Iterator[tuple[Message, Message]]:
        """The nodes' answers; sites that have not got the list of items are sent it and asked once more."""
        again: list[Message] = []
        for sent, reply in exchange(grid, messages, timeout) if messages else ():
            # Who asks for the list sends no array: an answer with one is not read before its length was looked at.
            asks = self._item_list is not None and not reply.has_error() and not weight(reply.content)
            if not asks or self._missing(reply) != self._catalogue:
                yield sent, reply
                continue
            self._problem(sent.metadata.dst_node_id, reply)
            assert self._item_list is not None
            content = pack(self._invitation(), {FROZEN + self._catalogue: self._item_list})
            again.append(Message(content, sent.metadata.dst_node_id, ENROLL))
        if again:
            yield from exchange(grid, again, timeout)

    def _keys(self, node: int, reply: Message) -> NDArray[np.uint64] | None:
        """The keys of the node's users, if it has joined with any."""
        if reply.has_error():
            self.counts["enrol_failed"] += 1
            log.warning("node %d could not be enrolled: %s", node, _last_line(reply))
            return None
        try:
            require_short(reply.content)
            content = unpack(reply.content)
            self._require_shared(content)
            self._note_losses(node, content)
            keys = user_keys(content)
        except PacketError as error:
            self.refuse(node, error, reply)
            if error.reason in LASTING:
                self._refused.add(node)
            return None
        if not keys.size:
            self._refused.add(node)  # nobody lives there: it need not be asked in every round
            return None
        return keys

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
        missing, versions = lacking(self.once, self.merges, self._holds[node])
        return Message(pack({**fields, **versions}, {**packets, **missing}, arrays), node, message_type)

    def sender(self, reply: Message) -> int:
        """The node that gave a reply which `collect` has yielded."""
        return self._senders[reply.metadata.reply_to_message_id]

    def refuse(self, node: int, error: PacketError, reply: Message) -> None:
        """A reply is of no use; it and its bytes are counted under the error's name, and the round goes on."""
        self.counts[error.reason] += 1
        self.wasted[error.reason] += weight(reply.content)
        log.warning("the reply of node %d is left out: %s", node, error)

    def _let_rest(self, silent: Iterable[int]) -> None:
        """Nodes have not answered; those that have not for some time rest, and their users are away."""
        for node in silent:
            if self._silences.silent(node):
                self.counts["rested"] += 1
                log.warning("node %d does not answer: it rests for some rounds, or until a late answer comes", node)
                self._forget(node)

    def collect(
        self, grid: Grid, messages: Iterable[Message], timeout: float, enough: Callable[[], bool] = lambda: False
    ) -> Iterator[Message]:
        """Send and yield the replies as they come; nodes that lack something are sent it and asked once more.

        Errors and silence are counted (`failed`, `no_answer`, `frozen_missing`, `oversized`), never yielded. When there
        is `enough` the others are waited for no longer: what they send comes late.
        """
        deadline = time.monotonic() + timeout
        first, again = list(messages), list[Message]()
        open = {message.metadata.dst_node_id: message for message in first}
        self._senders.clear()
        for attempt in (first, again):
            for sent, reply in exchange(grid, attempt, max(0.0, deadline - time.monotonic())) if attempt else ():
                node = sent.metadata.dst_node_id
                open.pop(node, None)
                self._silences.heard(node)
                if reply.has_error():
                    self.counts["failed"] += 1
                    log.warning("node %d failed: %s", node, _last_line(reply))
                elif self.largest_reply is not None and weight(reply.content) > self.largest_reply:
                    came = f"{weight(reply.content)} bytes came, an answer has at most {self.largest_reply}"
                    self.refuse(node, PacketError("oversized", came), reply)
                elif (problem := self._problem(node, reply)) is not None:
                    self.counts[problem.name] += 1
                    log.warning("node %d could not do its work: %s", node, problem.text)
                elif (missing := self._missing(reply)) is None:
                    self._holds[node].update(self.once)
                    self._senders[reply.metadata.reply_to_message_id] = node
                    yield reply
                    if enough():
                        self._overdue.expect(open.values(), timeout)
                        return
                elif missing in (NAMED, self._catalogue):
                    self.counts["users_changed"] += 1
                    log.warning("node %d has other users than it had: they are asked for anew", node)
                    self._forget(node)
                elif attempt is first:
                    self._holds[node].clear()
                    extra = pack({"setup": self._setup}, {FROZEN + name: packet for name, packet in self.once.items()})
                    again.append(Message(joined(sent.content, extra), node, sent.metadata.message_type))
                    open[node] = again[-1]
                    self.wasted["resent"] += weight(again[-1].content)
                    log.info("node %d lacks %s and is sent it again", node, shown(missing))
                else:
                    self.counts["frozen_missing"] += 1
                    self._forget(node)
        if open:
            self.counts["no_answer"] += len(open)
            self._overdue.expect(open.values(), timeout)
            self._let_rest(list(open))

    def give_up_if_too_many_failed(self, what: str, asked: int, accepted: int, max_failures: float) -> None:
        """Raise RoundError if, of the nodes `asked`, a larger share than `max_failures` was of no use."""
        failed = asked - accepted
        if failed > max_failures * asked:
            raise RoundError(
                f"{what}: {failed} of {asked} nodes failed ({dict(self.counts)}), more than "
                f"strategy.max_failures={max_failures} allows; see the log above for why"
            )

    def _problem(self, node: int, reply: Message) -> said.Problem | None:
        """Count what the node has lost, and give its reason if it did not do its work."""
        try:
            content = unpack(reply.content)
        except PacketError:
            return None
        self._note_losses(node, content)
        return said.problem(content)

    def _note_losses(self, node: int, content: Content) -> None:
        """Count what a node says that it has found lost or damaged; every reply is looked at once."""
        for name in said.losses(content):
            self.counts[name] += 1
            log.warning("node %d has found at its place: %s", node, name)

    def _missing(self, reply: Message) -> str | None:
        """What the node says it lacks, if that is its answer."""
        try:
            content = unpack(reply.content)
        except PacketError:
            return None
        self._require_shared(content)
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
        if (named := self._named.pop(node, None)) is not None:
            self._left[named] = self._holds.pop(node)  # if it comes back, most likely its disk does too


def _last_line(reply: Message) -> str:
    """What a failed reply says; of a stack trace, the error itself."""
    lines = (reply.error.reason or "").strip().splitlines()
    return shown(lines[-1], 2000) if lines else f"error {reply.error.code}"
