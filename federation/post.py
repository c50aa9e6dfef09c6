"""The post: messages to nodes and their answers, over the runtime's `Grid`, each waited for as long as it is due."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from flwr.app import Message
from flwr.serverapp import Grid

from exchanges.records import ENROLL, shown, weight
from federation.losses import Losses
from federation.pace import MOST, Pace
from federation.rests import Rests
from fedrec.core.errors import FederationError, PacketError

log = logging.getLogger("fedrec")

_FIRST_POLL = 0.005
_LONGEST_POLL = 0.5
_GRACE = 30.0
_LEFT_OUT = 3600.0
_OVERDUE = 600.0
"""Seconds after a message's last moment for which a late answer is still looked for: it tells how slow the node is."""


class Sent(NamedTuple):
    """A message that is under way: when it was sent, and how long a node of which nothing is known has to answer."""

    message: Message
    at: float
    patience: float

    @property
    def node(self) -> int:
        """The node that was asked."""
        return self.message.metadata.dst_node_id

    @property
    def kind(self) -> str:
        """What it was asked for."""
        return self.message.metadata.message_type


class Late(NamedTuple):
    """An answer for which nobody waits any more."""

    sent: Sent
    answer: Message


class Post:
    """Sends messages and hands on their answers.

    Attributes:
        losses: Where errors, silence and late answers are counted.
        rests: Who is left out for a time.
        late: Late answers to invitations, which are of use whenever they come; who enrols nodes takes them away.
    """

    def __init__(self, losses: Losses, silent_rounds: int) -> None:
        """A node rests after `silent_rounds` messages in a row that it has left unanswered."""
        self.losses = losses
        self.rests = Rests(silent_rounds)
        self.late: list[Late] = []
        self._pace = Pace()
        self._open: dict[str, Sent] = {}
        self._waiting: set[str] = set()
        self._unsent: list[Sent] = []

    def connected(self, grid: Grid) -> set[int]:
        """The nodes that are connected; what is known of others is forgotten, and late answers are looked for."""
        nodes = set(grid.get_node_ids())
        self.rests.connected(nodes)
        self._pace.forget(nodes)
        now = time.monotonic()
        self._open = {
            name: sent for name, sent in self._open.items() if sent.at + MOST * sent.patience + _OVERDUE > now
        }
        for _ in self._answers(grid):
            pass  # nothing is waited for now: all that comes is late
        return nodes

    def ask(
        self,
        grid: Grid,
        messages: Sequence[Message],
        patience: float,
        largest: Callable[[int], int],
        enough: Callable[[], bool] = lambda: False,
    ) -> Iterator[tuple[Message, Message]]:
        """Send messages and yield each with its answer, as they come, until nobody is waited for any more.

        Errors, answers that are too long, and silence are counted (`failed`, `oversized`, `no_answer`), never yielded.
        An answer is matched by the message that it answers: an error may name another source than the node asked.

        Args:
            grid: The runtime.
            messages: One for each node that is asked.
            patience: Seconds for which a node is waited for of which nothing is known.
            largest: Bytes that a node's answer may have; a longer one is refused unread.
            enough: Asked after each answer; once it holds, the others are waited for no longer.

        Raises FederationError if the runtime takes none of the messages, as it does with too large ones.
        """
        self._waiting, self._unsent = set(), []
        self._send(grid, messages, patience)
        pause = _FIRST_POLL
        while self._waiting:
            came = list(self._answers(grid))
            for sent, answer in came:
                if self._of_use(sent, answer, largest(sent.node)):
                    yield sent.message, answer
                    if enough():
                        self._waiting = set()  # what the others send comes late
                        return
            if not self._waiting or (left := self._time_left()) <= 0:
                break
            pause = _FIRST_POLL if came else min(pause * 1.5, _LONGEST_POLL)
            time.sleep(min(pause, left))
        self._silent([*self._unsent, *(self._open[name] for name in self._waiting)])
        self._waiting = set()

    def send_again(self, grid: Grid, message: Message, patience: float) -> None:
        """While answers are yielded: send one of the nodes a further message, whose answer is waited for as well."""
        self._send(grid, [message], patience)

    def _send(self, grid: Grid, messages: Sequence[Message], patience: float) -> None:
        if not messages:
            return
        for message in messages:
            # A node that comes back much later must not train on a round long past.
            message.metadata.ttl = MOST * patience + _GRACE
        names = list(grid.push_messages(messages))
        if len(names) != len(messages):
            raise FederationError(
                f"the runtime took {len(names)} of {len(messages)} messages: they are larger than it allows (see its "
                "log above); send less, with a compressed embedding or without a warm-up"
            )
        now = time.monotonic()
        for name, message in zip(names, messages, strict=True):
            sent = Sent(message, now, patience)
            if name:
                self._open[name] = sent
                self._waiting.add(name)
            else:  # the runtime did not take it
                self._unsent.append(sent)

    def _answers(self, grid: Grid) -> Iterator[tuple[Sent, Message]]:
        """The answers that have come and are waited for; late ones are dealt with."""
        for answer in grid.pull_messages(list(self._open)) if self._open else ():
            name = answer.metadata.reply_to_message_id
            if (sent := self._open.pop(name, None)) is None:
                continue
            self._pace.needed(sent.node, sent.kind, time.monotonic() - sent.at)
            if name in self._waiting:
                self._waiting.remove(name)
                yield sent, answer
            else:
                self._take_late(sent, answer)

    def _time_left(self) -> float:
        """Seconds until the last of those who are waited for has had its time: others may use it as well."""
        waiting = [self._open[name] for name in self._waiting]
        until = max(sent.at + self._pace.allowance(sent.node, sent.kind, sent.patience) for sent in waiting)
        return until - time.monotonic()

    def _of_use(self, sent: Sent, answer: Message, largest: int) -> bool:
        """Whether an answer that came in time may be read."""
        if sent.kind == ENROLL:
            self.rests.awake(sent.node)
        else:
            self.rests.answered(sent.node)
        if (came := weight(answer)) > largest:
            said = f"{came:,} bytes came, an answer has at most {largest:,}"
            self.losses.refuse(sent.node, PacketError("oversized", said), answer)
            if sent.kind == ENROLL:
                self.rests.leave_out(sent.node, _LEFT_OUT, f"its answer to the invitation was too long ({said})")
            return False
        if answer.has_error():
            self.losses.counts[_counted("failed", sent)] += 1
            log.warning("node %d failed: %s", sent.node, error_line(answer))
            return False
        if time.monotonic() - sent.at > sent.patience:
            self.losses.slow["waited_for"] += 1
        return True

    def _take_late(self, sent: Sent, answer: Message) -> None:
        """Count an answer that came after its round was over; that node is there again, if it can ever be in time."""
        if answer.has_error():
            return
        needs = self._pace.seconds(sent.node, sent.kind)
        if sent.kind == ENROLL:
            self.rests.awake(sent.node)
            self.late.append(Late(sent, answer))
            return
        self.losses.counts["late"] += 1
        self.losses.wasted["late"] += weight(answer)
        if self._pace.too_slow(sent.node, sent.kind, sent.patience):
            self.losses.slow["left_out"] += 1
            said = "node %d answers after %.0f s, and nobody is waited for longer than %.0f s: it is left out; to have "
            log.warning(said + "it count, raise federation.round_timeout", sent.node, needs, MOST * sent.patience)
        else:
            self.rests.answered(sent.node)
            log.info("node %d answered after %.0f s, too late: from now on it is given more time", sent.node, needs)

    def _silent(self, silent: Sequence[Sent]) -> None:
        """Nodes have not answered; those that have not for some time rest."""
        for sent in silent:
            self.losses.counts[_counted("no_answer", sent)] += 1
            if self.rests.silent(sent.node, max(sent.patience, time.monotonic() - sent.at)):
                self.losses.counts["rested"] += 1
                log.warning("node %d does not answer: it rests for a while", sent.node)


def _counted(name: str, sent: Sent) -> str:
    return f"enrol_{name}" if sent.kind == ENROLL else name


def error_line(answer: Message) -> str:
    """What an answer says that is an error; of a stack trace, the error itself."""
    lines = (answer.error.reason or "")[-10_000:].strip().splitlines()
    return shown(lines[-1], 2000) if lines else f"error {answer.error.code}"
