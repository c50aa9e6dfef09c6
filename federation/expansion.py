"""Now and then between two rounds: users tell those who have the same items of themselves.

The rules and both sides' arithmetic are in `fedrec.wire.expansion`.

Two messages to every node. The first asks for a noised vector of each of its users and for tags of their items, the
second brings what the server worked out of all that came. Neither brings anything that is frozen: a device that was
never chosen holds no base table, and needs none for this.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import numpy as np
import torch
from flwr.app import Message
from flwr.serverapp import Grid
from numpy.typing import NDArray

from exchanges import records
from federation.directory import Share
from federation.meter import Meter
from federation.nodes import Nodes
from federation.versions import Merges
from fedrec.core.errors import PacketError
from fedrec.wire.expansion import Expansion, around
from fedrec.wire.protocol import AROUND, TAGS, VECTORS, Setup, around_format, disclosed_format

log = logging.getLogger("fedrec")


class Rules(Protocol):
    """What of a strategy's configuration matters here."""

    @property
    def rounds(self) -> int:
        """Rounds of the whole run."""

    @property
    def round_timeout(self) -> float:
        """Seconds to wait for the nodes, each time."""


class _Disclosed(NamedTuple):
    """What a node's users sent: vectors float32 [users, dim], tags int64 [users, items], ascending for each user."""

    vectors: NDArray[np.float32]
    tags: NDArray[np.int64]


class Exchanges:
    """The exchanges of a run; there are none if the backbone has no `expansion`."""

    def __init__(self, setup: Setup, nodes: Nodes, expansion: Expansion | None, rules: Rules, meter: Meter) -> None:
        """Of a run whose clients are told `setup`."""
        self._setup, self._nodes, self._expansion = setup, nodes, expansion
        self._rules, self._meter = rules, meter

    def after(self, grid: Grid, phase: int, round: int, kept: int) -> dict[str, int]:
        """If one is due after `round` of `phase`, carry it out; the bytes that the users' devices moved, by direction.

        A node that fails or is silent costs the others nothing: its users keep what they were told before. What came
        and is of no use is counted under its reason.

        Args:
            grid: To all nodes that are here.
            phase: Of the plan.
            round: The round that has just ended.
            kept: The earliest round to which the server may go back.
        """
        expansion = self._expansion
        if expansion is None or not expansion.due(round, self._rules.rounds):
            return {}
        with self._nothing_frozen():
            shares, came = self._ask(grid, expansion, phase, round)
            if not came:
                log.warning("round %d: no node disclosed anything; all users keep what they were told before", round)
                return {}
            users = np.concatenate([shares[node].users for node in came])
            self._tell(grid, self._answers(expansion, shares, came), phase, round, kept)
        up = disclosed_format(self._setup.dim, expansion.items, users=1).size()
        return self._meter.exchanged(phase, users, up, around_format(self._setup.dim, users=1).size())

    def _ask(
        self, grid: Grid, expansion: Expansion, phase: int, round: int
    ) -> tuple[dict[int, Share], dict[int, _Disclosed]]:
        """All users by node, and what the nodes sent, each whole or not at all."""
        nodes = self._nodes
        shares = nodes.directory.shares(nodes.directory.here)
        most = max((len(share.users) for share in shares.values()), default=0)
        nodes.largest_reply = disclosed_format(self._setup.dim, expansion.items, most).size() + records.SLACK
        came: dict[int, _Disclosed] = {}
        messages = [nodes.message(node, records.DISCLOSE, _fields(phase, round), {}) for node in shares]
        for reply in nodes.collect(grid, messages, self._rules.round_timeout):
            node = nodes.sender(reply)
            form = disclosed_format(self._setup.dim, expansion.items, len(shares[node].users))
            try:
                data = records.unpack(reply.content).packet(records.DISCLOSED)
                tensors = form.decode(data, phase=phase, round=round).tensors
                came[node] = _checked(_Disclosed(tensors[VECTORS].numpy(), tensors[TAGS].numpy()), expansion)
            except PacketError as error:
                nodes.refuse(node, error, reply)
        return shares, came

    def _answers(
        self, expansion: Expansion, shares: dict[int, Share], came: dict[int, _Disclosed]
    ) -> dict[int, NDArray[np.float32]]:
        """What the users of each node are told; worked out in the order of the users' keys, whatever the layout."""
        keys = self._nodes.directory.keys[np.concatenate([shares[node].users for node in came])]
        vectors = np.concatenate([sent.vectors for sent in came.values()])
        tags = np.concatenate([sent.tags for sent in came.values()])
        order = np.argsort(keys)
        told = np.empty_like(vectors)
        told[order] = around(expansion, vectors[order], tags[order])
        ends = np.cumsum([len(sent.vectors) for sent in came.values()])
        return dict(zip(came, np.split(told, ends[:-1]), strict=True))

    def _tell(self, grid: Grid, answers: dict[int, NDArray[np.float32]], phase: int, round: int, kept: int) -> None:
        nodes, messages = self._nodes, list[Message]()
        for node, told in answers.items():
            form = around_format(self._setup.dim, len(told))
            packet = form.encode(phase, round, {AROUND: torch.from_numpy(told)}, [float(kept)])
            messages.append(nodes.message(node, records.SURROUND, _fields(phase, round), {records.AROUND: packet}))
        for _ in nodes.collect(grid, messages, self._rules.round_timeout):
            pass  # there is nothing in an answer; who gives none is counted

    @contextmanager
    def _nothing_frozen(self) -> Iterator[None]:
        """Messages bring nothing of what is frozen, and nodes are taken to hold no more than before."""
        nodes = self._nodes
        before = nodes.once, nodes.merges, nodes.largest_reply
        nodes.once, nodes.merges = {}, Merges()
        try:
            yield
        finally:
            nodes.once, nodes.merges, nodes.largest_reply = before


def _fields(phase: int, round: int) -> dict[str, records.Field]:
    return {"phase": phase, "round": round}


def _checked(sent: _Disclosed, expansion: Expansion) -> _Disclosed:
    """What a node sent. Raises PacketError if no device that follows the rules could have sent it."""
    if not np.isfinite(sent.vectors).all():
        raise PacketError("non_finite", "a vector that a user disclosed is not finite")
    if (largest := float(np.abs(sent.vectors).max(initial=0.0))) > expansion.largest:
        raise PacketError(
            "too_large", f"a vector that a user disclosed holds {largest:g}, at most {expansion.largest:g} are possible"
        )
    if (sent.tags[:, 1:] <= sent.tags[:, :-1]).any():
        raise PacketError("wrong_tags", "a user's tags are not in order, or one of them is there twice")
    return sent
