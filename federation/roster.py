"""Who is in the federation now: nodes are invited and join with their users, leave, rest, and come back."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping

from flwr.app import Array, Message
from flwr.serverapp import Grid

from exchanges.declaration import Participant
from exchanges.members import Enrolment
from exchanges.records import (
    ENROLL,
    FROZEN,
    MISSING,
    RESUMED,
    UNSHARED,
    Content,
    Field,
    pack,
    size,
    unpack,
)
from federation import said
from federation.directory import Directory
from federation.enrolment import LASTING, LONGEST, Joined, joined
from federation.losses import Losses
from federation.node_limits import NamedUsers
from federation.post import Post
from federation.resends import Resends
from fedrec.config.schema import UNLIMITED, NodeLimits
from fedrec.core.errors import FederationError, PacketError
from fedrec.core.keys import keys_digest
from fedrec.wire.protocol import Setup

log = logging.getLogger("fedrec")

_TIMEOUT = 120.0
_PATIENCE = 0.1
"""Seconds more for every node: Flower's simulation serves some ten to a hundred calls a second among thousands."""
_LATER = 30.0
"""Seconds for a node that comes while others train already; an answer that comes even later is taken when it comes."""
_POLL = 0.1
_SHOWN = 8
_WAIT, _LONGEST_WAIT = 2.0, 30.0
_AGAIN = 600.0
"""Seconds for which a node is left out that says time and again that it has not got the list of items."""


class Roster:
    """The nodes that take part.

    Attributes:
        directory: The users, and the node each lives on.
        named: The digest of its users' keys, for each node that is here.
        enrolment_bytes: What one user's device moves to join: the setup down (and the list of items), its key up.
        resends: How often a node may still be sent again what it lacks.
    """

    def __init__(
        self,
        setup: Setup,
        post: Post,
        directory: Directory,
        item_list: Array | None = None,
        resumes: Collection[int] = (),
        limits: NodeLimits = UNLIMITED,
        labels: Array | None = None,
    ) -> None:
        """Of a run whose clients are told `setup`.

        Args:
            setup: What every client is told.
            post: Carries the invitations.
            directory: The users seen so far; all of them are away.
            item_list: The public list of items, wrapped, for sites that have none yet.
            resumes: The rounds after which the run went on when it was resumed; nodes forget what they trained since.
            limits: What one node may be.
            labels: The public labels of items, wrapped, where users are grouped by them: part of every invitation.
        """
        self.directory = directory
        self.named: dict[int, str] = {}
        self.resends = Resends()
        self._resumes = tuple(resumes)
        self._post = post
        self._setup = setup.to_json()
        self._simulated = setup.simulation is not None
        self._catalogue = setup.catalogue
        self._n_groups = len(setup.groups)
        self._item_list = item_list
        self._labels = {} if labels is None else {FROZEN + setup.item_labels: labels}
        declared, device = Enrolment(setup, size(item_list) if item_list else 0), Participant()
        self.enrolment_bytes = declared.down_bytes(device) + declared.up_bytes(device)
        self._refused: dict[int, str] = {}
        self._named_users = NamedUsers(limits, directory)

    @property
    def _losses(self) -> Losses:
        return self._post.losses

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

        While the round waits, nodes that rest are asked as well: asking them costs nothing then. Raises FederationError
        if too few come within `timeout` seconds; in a simulation, where nobody comes later, at once if none rests.
        """
        deadline, pause = time.monotonic() + timeout, 0.0
        self.enrol(grid)
        while len(self.directory.nodes) < least:
            left = deadline - time.monotonic()
            if left <= 0 or (self._simulated and not self._post.rests.resting):
                raise FederationError(self._too_few(grid, least, timeout))
            if not self._post.rests.resting:
                pause = max(pause, _WAIT)
            time.sleep(min(pause, left))
            pause = min(max(_WAIT, 1.5 * pause), _LONGEST_WAIT)
            self.enrol(grid, waiting_for=least, most_seconds=max(_POLL, deadline - time.monotonic()))

    def _too_few(self, grid: Grid, least: int, timeout: float) -> str:
        """What is missing when a round cannot begin."""
        connected, joined = set(grid.get_node_ids()), self.directory.nodes
        known = [f"node {node} was refused: {why}" for node, why in sorted(self._refused.items())]
        known += self._post.rests.said()
        silent = connected - set(joined) - set(self._refused) - self._post.rests.resting
        known += [f"node {node} has not said who lives there" for node in sorted(silent)]
        counted = f" ({dict(self._losses.counts)})" if self._losses.counts else ""
        more = [f"and {len(known) - _SHOWN} more"] if len(known) > _SHOWN else []
        return (
            f"{len(joined)} of the {len(connected)} connected nodes have joined with users, "
            f"federation.min_nodes={least} are needed, and no more came in {timeout:.0f} s{counted}: "
            + ("; ".join([*known[:_SHOWN], *more]) or "start the missing SuperNodes, or lower federation.min_nodes")
        )

    def enrol(self, grid: Grid, *, waiting_for: int = 0, most_seconds: float | None = None) -> None:
        """Ask nodes seen for the first time who lives there, and forget those that have gone.

        Raises FederationError if a worker of a simulation does not see the server's folders.

        Args:
            grid: The runtime.
            waiting_for: A round cannot begin before so many nodes are here: those that rest are asked as well, and
                nobody is waited for once they are.
            most_seconds: No node is waited for longer.
        """
        connected = self._post.connected(grid)
        self._refused = {node: why for node, why in self._refused.items() if node in connected}
        self.resends.connected(connected)
        for node in self.directory.nodes:
            if node not in connected:
                self.forget(node)
        self.let_rest()
        came: dict[int, Joined] = {}
        late, self._post.late = self._post.late, []
        for sent, answer in late:
            # A late answer that asks for the list of items is of no use: the node will be invited again.
            if sent.node in connected - set(self._refused) - set(self.named) and not self._asks_for_list(answer):
                self._take(sent.node, answer, came)
        left_out = set() if waiting_for else self._post.rests.resting
        new = sorted(connected - set(self.directory.nodes) - set(self._refused) - left_out - set(came))
        patience = (_LATER if len(self.directory) and not self._simulated else _TIMEOUT) + _PATIENCE * len(new)
        patience = patience if most_seconds is None else min(patience, most_seconds)

        def enough() -> bool:
            return bool(waiting_for) and len(self.directory.nodes) + len(came) >= waiting_for

        before = self._losses.counts["enrol_no_answer"]
        for node, answer in self._invited(grid, new, patience, enough):
            self._take(node, answer, came)
        if silent := self._losses.counts["enrol_no_answer"] - before:
            text = "%d of %d nodes did not say in %.0f s who lives there: the round goes on without their users, and "
            log.warning(text + "they are asked again later", silent, len(new), patience)
        self._join(came)

    def _invited(
        self, grid: Grid, nodes: list[int], patience: float, enough: Callable[[], bool]
    ) -> Iterator[tuple[int, Message]]:
        """The nodes' answers; sites that have not got the list of items are sent it and asked once more."""
        messages = [Message(pack(self._invitation(), self._labels), node, ENROLL) for node in nodes]
        told: set[int] = set()
        for sent, answer in self._post.ask(grid, messages, patience, lambda node: LONGEST, enough) if messages else ():
            node = sent.metadata.dst_node_id
            if self._item_list is None or not self._asks_for_list(answer):
                yield node, answer
                continue
            self.problem(node, answer)
            if node in told or not self.resends.allow(node):
                self._losses.counts["resend_refused"] += 1
                why = "it says time and again that it lacks the list of items"
                self._post.rests.leave_out(node, _AGAIN, why)
                log.warning("node %d is left out for a while: %s", node, why)
            else:
                told.add(node)
                content = pack(self._invitation(), {**self._labels, FROZEN + self._catalogue: self._item_list})
                self._post.send_again(grid, Message(content, node, ENROLL), patience)

    def _invitation(self) -> dict[str, Field]:
        """What a node is told that is to join."""
        resumed: dict[str, Field] = {RESUMED: " ".join(map(str, self._resumes))} if self._resumes else {}
        return {"setup": self._setup, **resumed}

    def _asks_for_list(self, answer: Message) -> bool:
        # Who asks for the list sends no array: an answer with one is not read here.
        return not any(answer.content.array_records.values()) and self.missing(answer) == self._catalogue

    def _take(self, node: int, answer: Message, came: dict[int, Joined]) -> None:
        """What the node has told of itself goes into `came`, if it has joined with users."""
        try:
            content = unpack(answer.content)
            self.require_shared(content)
            self._note_losses(node, content)
            told = joined(content, self._n_groups)
            self._named_users.require(node, told.keys)
        except PacketError as error:
            self._losses.refuse(node, error, answer)
            if error.reason in LASTING:
                self._refused[node] = f"{error.reason} ({error})"
            return
        if told.keys.size:
            came[node] = told
        else:  # it need not be asked in every round
            self._refused[node] = "nobody lives there"

    def _join(self, came: Mapping[int, Joined]) -> None:
        """Nodes join in the order of their users' keys: a node's id is drawn anew in every run."""
        for node in sorted(came, key=lambda node: int(came[node].keys.min())):
            try:
                replaced = self.directory.join(node, *came[node])
            except FederationError as error:
                self._losses.counts["double_users"] += 1
                log.warning("node %d is left out: %s", node, error)
                continue
            for other in replaced:
                self._losses.counts["double_users"] += 1
                self.forget(other)
                # Until it has been away: else the two would replace each other in every round.
                self._refused[other] = f"node {node} names the same users and has come in its place"
                log.warning("node %d names users of node %d: it has come in its place", node, other)
            self.named[node] = keys_digest(came[node].keys)

    def missing(self, answer: Message) -> str | None:
        """What the node says it lacks, if that is its answer."""
        try:
            content = unpack(answer.content)
        except PacketError:
            return None
        self.require_shared(content)
        missing = content.fields.get(MISSING)
        return missing if isinstance(missing, str) else None

    def problem(self, node: int, answer: Message) -> said.Problem | None:
        """Count what the node has lost, and give its reason if it did not do its work."""
        try:
            content = unpack(answer.content)
        except PacketError:
            return None
        self._note_losses(node, content)
        return said.problem(content)

    def _note_losses(self, node: int, content: Content) -> None:
        """Count what a node says that it has found lost or damaged; every answer is looked at once."""
        for name in said.losses(content):
            self._losses.counts[name] += 1
            log.warning("node %d has found at its place: %s", node, name)

    def require_shared(self, content: Content) -> None:
        """Raise a FederationError if a worker of the simulation sees other folders: every node may be given to it.

        Real devices have folders of their own, and could not end a run by saying so.
        """
        if self._simulated and UNSHARED in content.fields:
            raise FederationError(str(content.fields[UNSHARED]))

    def let_rest(self) -> None:
        """The users of nodes that rest are away."""
        for node in self._post.rests.resting & set(self.directory.nodes):
            self.forget(node)

    def forget(self, node: int) -> None:
        """A node is not here any more, and is invited when it is seen again."""
        self.directory.leave(node)
        self.named.pop(node, None)
