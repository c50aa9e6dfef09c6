"""The nodes as the server sees them: which are here, what each already holds, and which reply is whose."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
from flwr.app import Array, Message
from flwr.serverapp import Grid
from numpy.typing import NDArray

from exchanges.records import FROZEN, NAMED, Field, joined, pack, shown, weight
from federation.directory import Directory
from federation.losses import Losses
from federation.post import Post
from federation.roster import Roster
from federation.versions import Merges, lacking
from fedrec.core.errors import PacketError, RoundError
from fedrec.wire.protocol import Setup

log = logging.getLogger("fedrec")

_AGAIN = 600.0
"""Seconds for which a node is left out that says time and again that it has lost what it was sent."""


class Nodes:
    """The nodes of a federation.

    Attributes:
        roster: Who is here.
        once: What every node must hold by now, as wrapped packets by the digest of their content. A node gets those
            that it is not known to hold along with the next message to it.
        merges: What was merged into the base table among them: the shorter way for a node that holds an older version.
        losses: What was of no use since the round began.
        largest_reply: Bytes that a reply may have at most; anything longer is refused unread.
    """

    def __init__(self, setup: Setup, item_list: Array | None = None, silent_rounds: int = 2) -> None:
        """Of a run whose clients are told `setup`.

        Args:
            setup: What every client is told.
            item_list: The public list of items, wrapped, for sites that have none yet.
            silent_rounds: Unanswered messages in a row after which a node rests.
        """
        self.losses = Losses()
        self.once: dict[str, Array] = {}
        self.merges = Merges()
        self.largest_reply = 0
        self._post = Post(self.losses, silent_rounds)
        self.roster = Roster(setup, self._post, item_list)
        self._setup = setup.to_json()
        self._simulated = setup.simulation is not None
        self._catalogue = setup.catalogue
        self._holds: dict[str, set[str]] = {}
        self._senders: dict[str, int] = {}

    @property
    def counts(self) -> Counter[str]:
        """What went wrong since the round began, by name."""
        return self.losses.counts

    @property
    def directory(self) -> Directory:
        """The users, and the node each lives on."""
        return self.roster.directory

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
            fields = {**fields, NAMED: self.roster.named[node]}
        missing, versions = lacking(self.once, self.merges, self._held(node))
        return Message(pack({**fields, **versions}, {**packets, **missing}, arrays), node, message_type)

    def _held(self, node: int) -> set[str]:
        """What those users' node holds; one that went away and comes back with them has most likely kept its disk."""
        return self._holds.setdefault(self.roster.named[node], set())

    def sender(self, reply: Message) -> int:
        """The node that gave a reply which `collect` has yielded."""
        return self._senders[reply.metadata.reply_to_message_id]

    def refuse(self, node: int, error: PacketError, reply: Message) -> None:
        """A reply is of no use; it and its bytes are counted under the error's name, and the round goes on."""
        self.losses.refuse(node, error, reply)

    def collect(
        self, grid: Grid, messages: Iterable[Message], timeout: float, enough: Callable[[], bool] = lambda: False
    ) -> Iterator[Message]:
        """Send and yield the replies as they come; nodes that lack something are sent it and asked once more.

        Errors and silence are counted (`failed`, `no_answer`, `frozen_missing`, `oversized`), never yielded. When there
        is `enough` the others are waited for no longer: what they send comes late.
        """
        told: set[int] = set()
        self._senders.clear()
        for sent, reply in self._post.ask(grid, list(messages), timeout, lambda node: self.largest_reply, enough):
            node = sent.metadata.dst_node_id
            if (problem := self.roster.problem(node, reply)) is not None:
                self.counts[problem.name] += 1
                log.warning("node %d could not do its work: %s", node, problem.text)
            elif (missing := self.roster.missing(reply)) is None:
                self._held(node).update(self.once)
                self.roster.resends.useful(node)
                self._senders[reply.metadata.reply_to_message_id] = node
                yield reply
            elif missing in (NAMED, self._catalogue):
                self.counts["users_changed"] += 1
                log.warning("node %d has other users than it had: they are asked for anew", node)
                self.roster.forget(node)
            elif node in told:
                self.counts["frozen_missing"] += 1
                self.roster.forget(node)
            elif not self.roster.resends.allow(node):
                self.counts["resend_refused"] += 1
                why = f"it has said time and again that it lacks what it was sent ({shown(missing)})"
                self._post.rests.leave_out(node, _AGAIN, why)
                log.warning("node %d is left out for a while: %s", node, why)
            else:
                told.add(node)
                self._held(node).clear()
                extra = pack({"setup": self._setup}, {FROZEN + name: packet for name, packet in self.once.items()})
                again = Message(joined(sent.content, extra), node, sent.metadata.message_type)
                self.losses.wasted["resent"] += weight(again)
                log.info("node %d lacks %s and is sent it again", node, shown(missing))
                self._post.send_again(grid, again, timeout)
        self.roster.let_rest()

    def give_up_if_too_many_failed(self, what: str, asked: int, accepted: int, max_failures: float) -> None:
        """Raise RoundError if, of the nodes `asked`, a larger share than `max_failures` was of no use."""
        failed = asked - accepted
        if failed > max_failures * asked:
            raise RoundError(
                f"{what}: {failed} of {asked} nodes failed ({dict(self.counts)}), more than "
                f"strategy.max_failures={max_failures} allows; see the log above for why"
            )
