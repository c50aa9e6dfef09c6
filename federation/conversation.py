"""The conversation: carries exchanges between the server and the nodes, several of them in one message if need be.

It alone knows what a node is called, what it lacks, what it must be told again, how long it is waited for, how long an
answer may be, what bytes count, and what is done again if too few took part. It knows nothing of what an exchange is
for. Its parts: `post` (messages and deadlines), `roster` (who is here), `losses` (what was of no use).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
from flwr.app import Array, Message
from flwr.serverapp import Grid
from numpy.typing import NDArray

from exchanges.records import (
    CARRIES,
    CROSSING,
    FROZEN,
    NAMED,
    SLACK,
    Field,
    grouped,
    joined,
    pack,
    shown,
    size,
    unpack,
    weight,
)
from federation.directory import Directory
from federation.exchange import Exchange, Ledger
from federation.losses import Losses
from federation.meter import Meter
from federation.post import Post
from federation.roster import Roster
from federation.versions import NOTHING_FROZEN, Frozen, lacking
from fedrec.config.schema import FederationConfig
from fedrec.core.errors import PacketError, RoundError
from fedrec.networks.simulated import SimulatedNetwork
from fedrec.wire.protocol import Setup

log = logging.getLogger("fedrec")

_AGAIN = 600.0
"""Seconds for which a node is left out that says time and again that it has lost what it was sent."""


class Conversation:
    """All that is said in a run.

    Attributes:
        losses: What was of no use since the round began.
        directory: The users, and the node each lives on.
        roster: Who is here.
        elapsed: Simulated seconds that training has taken since the round began; 0 without a simulated network.
    """

    def __init__(
        self,
        grid: Grid,
        setup: Setup,
        rules: FederationConfig,
        directory: Directory,
        meter: Meter,
        eligible: Array,
        item_list: Array | None = None,
        resumes: Sequence[int] = (),
        labels: Array | None = None,
    ) -> None:
        """Of a run whose clients are told `setup`.

        Args:
            grid: The runtime.
            setup: What every client is told.
            rules: Deadlines, and how many may fail.
            directory: The users seen so far; all of them are away.
            meter: Counts what users' devices move.
            eligible: The public list of items that may be recommended, wrapped: everybody downloads it to join.
            item_list: The public list of items, wrapped, for sites that have none yet.
            resumes: The rounds after which the run went on when it was resumed.
            labels: The public labels of items, wrapped, where users are grouped by them.
        """
        self.losses = Losses()
        self.elapsed = 0.0
        self.directory = directory
        self._grid = grid
        self._setup = setup
        self._rules = rules
        self._patience = rules.patience(simulated=setup.simulation is not None)
        self._meter = meter
        self._post = Post(self.losses, rules.silent_rounds)
        limits = rules.node_limits(simulated=setup.simulation is not None)
        self.roster = Roster(setup, self._post, directory, item_list, resumes, limits, labels)
        self._joining = self.roster.enrolment_bytes + size(eligible)
        self._holds: dict[str, set[str]] = {}

    def wait(self, expected: int, timeout: float) -> None:
        """Wait until `expected` nodes are connected. Raises FederationError if they do not come."""
        self.roster.wait(self._grid, expected, timeout)

    def gather(self) -> None:
        """Begin a round: enrol who is new, and wait for as many nodes as are needed."""
        self.roster.gather(self._grid, self._rules.min_nodes, self._rules.node_timeout)
        self._meter.grow(len(self.directory), self._joining)

    def carry(self, *together: Exchange) -> None:
        """Carry exchanges, with one message to each node that takes part in any of them.

        The last one is what the round is about; those before it ride on its messages, and are done first. What they
        bring is judged apart: an answer of no use to one may be of use to the other. If too few take part in one of
        them, all are begun again, with those who are here then, up to `repeats` times. Raises RoundError after that.
        """
        for left in reversed(range(1 + self._rules.repeats)):
            try:
                self._try(together)
                self.elapsed += sum(map(self._seconds, together))
                return
            except RoundError as error:
                if not left:
                    raise
                name = together[-1].declared.kind.rpartition(".")[2]
                self.losses.counts[_REPEATED.get(name, f"{name}_repeated")] += 1
                log.warning("%s; it is done again", error)
            self.gather()

    def _seconds(self, exchange: Exchange) -> float:
        """Simulated seconds of one that has been carried. A try that failed takes none: its loss is not simulated."""
        network = self._setup.network_of_run
        if isinstance(network, SimulatedNetwork) and exchange.ledger is Ledger.TRAINING:
            return exchange.seconds(network)
        return 0.0

    def _try(self, together: Sequence[Exchange]) -> None:
        for exchange in together:
            exchange.begin(self.directory)
        self._charge_down(together)
        told: set[int] = set()
        nodes = [node for node in self.directory.nodes if any(node in exchange.shares for exchange in together)]
        sent_to = {node: [exchange for exchange in together if node in exchange.shares] for node in nodes}
        messages = [self._message(node, exchanges) for node, exchanges in sent_to.items()]

        def largest(node: int) -> int:
            return SLACK + sum(each.declared.up_bytes(each.participant(node)) for each in sent_to[node])

        def enough() -> bool:
            return all(exchange.enough() for exchange in together)

        for sent, answer in self._post.ask(self._grid, messages, self._patience, largest, enough) if messages else ():
            node = sent.metadata.dst_node_id
            if (problem := self.roster.problem(node, answer)) is not None:
                self.losses.counts[problem.name] += 1
                log.warning("node %d could not do its work: %s", node, problem.text)
            elif (missing := self.roster.missing(answer)) is None:
                self._holds[self.roster.named[node]].update(_once(sent_to[node], node))
                self.roster.resends.useful(node)
                self._take(node, answer, sent_to[node])
            elif missing in {NAMED, self._setup.catalogue, self._setup.item_labels} - {""}:
                self.losses.counts["users_changed"] += 1
                log.warning("node %d has other users than it had: they are asked for anew", node)
                self.roster.forget(node)
            elif node in told:
                self.losses.counts["frozen_missing"] += 1
                self.roster.forget(node)
            elif not self.roster.resends.allow(node):
                self.losses.counts["resend_refused"] += 1
                why = f"it has said time and again that it lacks what it was sent ({shown(missing)})"
                self._post.rests.leave_out(node, _AGAIN, why)
                log.warning("node %d is left out for a while: %s", node, why)
            else:
                told.add(node)
                self._send_again(node, sent, _once(sent_to[node], node), missing)
        self.roster.let_rest()
        for exchange in reversed(together):
            exchange.require_enough(self.losses.counts)

    def _message(self, node: int, exchanges: Sequence[Exchange]) -> Message:
        """A message to a node, with what it does not yet hold."""
        fields: dict[str, Field] = {}
        packets: dict[str, bytes | Array] = {}
        arrays: dict[str, NDArray[np.generic]] = {}
        for exchange in exchanges:
            fields |= exchange.fields(node)
            packets |= exchange.packets(node)
            arrays |= exchange.arrays(node)
        if len(exchanges) > 1:
            fields[CARRIES] = " ".join(exchange.declared.kind for exchange in exchanges)
        if self._setup.simulation is None:
            fields[NAMED] = self.roster.named[node]
        # What its users' node holds: one that went away and comes back with them has most likely kept its disk.
        held = set(self._holds.setdefault(self.roster.named[node], set()))
        for group, frozen in _needs(exchanges, node).items():
            missing, versions = lacking(frozen.once, frozen.merges, held)
            packets |= missing
            fields |= {grouped(name, group): value for name, value in versions.items()}
            held |= frozen.once.keys()
        content = pack(fields, packets, arrays)
        return Message(content, node, exchanges[-1].declared.kind)

    def _send_again(self, node: int, sent: Message, once: Mapping[str, Array], missing: str) -> None:
        """The node lacks something: send it the setup and everything frozen, and ask once more."""
        self._holds[self.roster.named[node]].clear()
        extra = pack({"setup": self._setup.to_json()}, {FROZEN + name: packet for name, packet in once.items()})
        again = Message(joined(sent.content, extra), node, sent.metadata.message_type)
        self.losses.wasted["resent"] += weight(again)
        log.info("node %d lacks %s and is sent it again", node, shown(missing))
        self._post.send_again(self._grid, again, self._patience)

    def _take(self, node: int, answer: Message, exchanges: Sequence[Exchange]) -> None:
        """Let each exchange take its part of an answer; what is taken is charged to the users' devices."""
        for exchange in exchanges:
            try:
                exchange.take(node, unpack(answer.content))
            except PacketError as error:
                self.losses.refuse(node, error, answer)
                continue
            exchange.taken.append(node)
            self._meter.uploaded(exchange.ledger, exchange.phase, exchange.uploaded(node))
            self._meter.crossed(exchange.ledger, exchange.crossed(node))

    def _charge_down(self, together: Sequence[Exchange]) -> None:
        """What the users' devices download, each packet once, whatever number of exchanges needs it."""
        charged: dict[str, NDArray[np.int64]] = {}
        for exchange in reversed(together):
            users = exchange.users
            downloads = np.zeros(len(users), dtype=np.int64)
            for name, each in exchange.each_down().items() if len(users) else ():
                new = ~np.isin(users, charged.get(name, []))
                downloads += each * new
                self._meter.downloaded(exchange.ledger, exchange.phase, int(each[new].sum()))
                if name in CROSSING:
                    self._meter.crossed(exchange.ledger, int(each[new].sum()))
                charged[name] = np.union1d(charged.get(name, np.zeros(0, np.int64)), users)
            for group, frozen in exchange.frozen.items():
                if frozen.bytes is not None:
                    held_by = exchange.users_of(group)
                    lacked = self._meter.froze(exchange.ledger, exchange.phase, held_by, frozen.bytes)
                    downloads[np.isin(users, held_by)] += lacked
            exchange.charge(downloads)


_REPEATED = {"train": "round_repeated", "evaluate": "ranking_repeated"}


def _needs(exchanges: Sequence[Exchange], node: int) -> dict[str, Frozen]:
    """What a node must hold, by group, to take part in all of these."""
    needs: dict[str, Frozen] = {}
    for exchange in exchanges:
        for group, frozen in exchange.needs(node).items():
            before = needs.get(group, NOTHING_FROZEN)
            merges = before.merges if before.merges.log else frozen.merges
            needs[group] = Frozen({**before.once, **frozen.once}, merges)
    return needs


def _once(exchanges: Sequence[Exchange], node: int) -> dict[str, Array]:
    """All of it, as it is sent once."""
    return {name: packet for frozen in _needs(exchanges, node).values() for name, packet in frozen.once.items()}
