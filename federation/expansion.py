"""Now and then between two rounds: users tell those who have the same items of themselves.

The rules and both sides' arithmetic are in `fedrec.wire.expansion`.

Two exchanges with every node. The first asks for a noised vector of each of its users and for tags of their items, the
second brings what the server worked out of all that came. Neither brings anything that is frozen: a device that was
never chosen holds no base table, and needs none for this. A node that fails or is silent costs the others nothing: its
users keep what they were told before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from flwr.app import Array
from numpy.typing import NDArray
from typing_extensions import override

from exchanges import members, records
from exchanges.records import Content
from federation.directory import Directory, Share
from federation.exchange import Exchange
from fedrec.core.errors import PacketError
from fedrec.wire.expansion import Expansion, around
from fedrec.wire.protocol import AROUND, TAGS, VECTORS, Setup


class _Disclosed(NamedTuple):
    """What a node's users sent: vectors float32 [users, dim], tags int64 [users, items], ascending for each user."""

    vectors: NDArray[np.float32]
    tags: NDArray[np.int64]


class Disclosing(Exchange):
    """All users who are here let others have a vector and tags."""

    def __init__(self, setup: Setup, expansion: Expansion, phase: int, round: int) -> None:
        """After `round` of `phase`."""
        declared = members.Disclosing(setup.dim, expansion.items)
        super().__init__(declared, f"disclosing after round {round}", phase, round)
        self._setup = setup
        self._expansion = expansion
        self._came: dict[int, _Disclosed] = {}

    @override
    def participants(self, directory: Directory) -> dict[int, Share]:
        self._came = {}
        return super().participants(directory)

    @override
    def take(self, node: int, answer: Content) -> None:
        form = self.declared.up(self.participant(node))[records.DISCLOSED]
        tensors = form.decode(answer.packet(records.DISCLOSED), phase=self.phase, round=self.round).tensors
        self._came[node] = _checked(_Disclosed(tensors[VECTORS].numpy(), tensors[TAGS].numpy()), self._expansion)

    def answers(self, kept: int) -> Surrounding | None:
        """The exchange that tells those users of each other; None if nobody disclosed anything.

        It is worked out in the order of the users' keys, whatever the layout.

        Args:
            kept: The earliest round to which the server may go back.
        """
        if not self._came:
            return None
        keys = np.concatenate([self.participant(node).keys for node in self._came])
        vectors = np.concatenate([sent.vectors for sent in self._came.values()])
        tags = np.concatenate([sent.tags for sent in self._came.values()])
        order = np.argsort(keys)
        told = np.empty_like(vectors)
        told[order] = around(self._expansion, vectors[order], tags[order])
        ends = np.cumsum([len(sent.vectors) for sent in self._came.values()])
        by_node = dict(zip(self._came, np.split(told, ends[:-1]), strict=True))
        shares = {node: self.shares[node] for node in self._came}
        return Surrounding(self._setup, by_node, shares, self.phase, self.round, kept)


class Surrounding(Exchange):
    """Users who have disclosed something are told of those around them."""

    def __init__(
        self,
        setup: Setup,
        told: Mapping[int, NDArray[np.float32]],
        asked: Mapping[int, Share],
        phase: int,
        round: int,
        kept: int,
    ) -> None:
        """After `round` of `phase`.

        Args:
            setup: What every client was told.
            told: For each node a vector of each of its users, float32 [users, dim].
            asked: The users of each of these nodes.
            phase: Of the plan.
            round: The round that has just ended.
            kept: The earliest round to which the server may go back.
        """
        super().__init__(members.Surrounding(setup.dim), f"surrounding after round {round}", phase, round)
        self._told = told
        self._asked = asked
        self._kept = kept

    @override
    def participants(self, directory: Directory) -> dict[int, Share]:
        return {node: self._asked[node] for node in directory.nodes if node in self._asked}

    @override
    def packets(self, node: int) -> Mapping[str, bytes | Array]:
        form = self.declared.down(self.participant(node))[records.AROUND]
        tensors = {AROUND: torch.from_numpy(self._told[node])}
        return {records.AROUND: form.encode(self.phase, self.round, tensors, [float(self._kept)])}

    @override
    def take(self, node: int, answer: Content) -> None:
        """There is nothing in an answer; who gives none is counted."""


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
