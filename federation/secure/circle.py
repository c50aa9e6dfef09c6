"""Who takes part in a secure sum, as the server knows them: the roll, the graph, and how far each has come."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from exchanges.secure import Circle
from fedrec.aggregations.base import Masks
from fedrec.secure.graph import neighbours
from fedrec.secure.keys import SEALED_BYTES, Announced
from fedrec.wire.secure import Status

Bytes = NDArray[np.uint8]


_AT_ONCE = 64
"""Participants whose neighbours' neighbours are looked through at once."""


def _numbers(neighbours: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where everybody stands among the neighbours of each of its own, counted from 1."""
    found = np.empty_like(neighbours)
    for start in range(0, len(neighbours), _AT_ONCE):
        theirs = neighbours[neighbours[start : start + _AT_ONCE]]
        found[start : start + _AT_ONCE] = (theirs == np.arange(start, start + len(theirs))[:, None, None]).argmax(2) + 1
    return found


class Participants:
    """Those who have announced themselves, in the order of the roll.

    Attributes:
        size: What both sides know of the circle.
        nodes: Their ids.
        announced: What each has announced.
        roll: uint8 [participants, bytes], the digests of that, ascending.
        neighbours: int64 [participants, degree].
        numbers: int64 [participants, degree], by which number each is known to each neighbour: that of the share of the
            neighbour's secrets that it holds.
        commitments: By what the seed of each one's own mask is recognised, of who has shared it.
    """

    def __init__(self, announced: Mapping[int, Announced], masks: Masks) -> None:
        """Of nodes. Raises FederationError if they are too few for what the masks are made for."""
        lines = {node: line.digest().tobytes() for node, line in announced.items()}
        self.nodes = sorted(announced, key=lines.__getitem__)
        self.announced = [announced[node] for node in self.nodes]
        self.size = Circle.of(masks, len(self.nodes), sum(line.users for line in self.announced))
        self.roll = np.frombuffer(b"".join(lines[node] for node in self.nodes), np.uint8).reshape(len(self.nodes), -1)
        self.neighbours = neighbours(self.roll, self.size.graph.degree)
        self.numbers = _numbers(self.neighbours)
        self.commitments: dict[int, bytes] = {}
        self._places = {node: place for place, node in enumerate(self.nodes)}
        self._sealed = np.zeros((*self.neighbours.shape, SEALED_BYTES), dtype=np.uint8)
        self._present = np.zeros(len(self.nodes), dtype=np.bool_)

    def place(self, node: int) -> int:
        """A node's place on the roll."""
        return self._places[node]

    @property
    def users(self) -> Bytes:
        """uint8 [participants, 4], how many users each was asked for, little-endian."""
        return np.array([line.users for line in self.announced], dtype="<u4")[:, None].view(np.uint8)

    def lines_for(self, node: int) -> Bytes:
        """uint8 [degree, bytes], what a node's neighbours have announced."""
        return np.stack([self.announced[other].packed() for other in self.neighbours[self.place(node)]])

    def shared(self, node: int, sealed: Bytes, commitment: bytes) -> None:
        """A node has sealed shares for its neighbours, uint8 [degree, bytes]."""
        place = self.place(node)
        self._sealed[place] = sealed
        self.commitments[place] = commitment
        self._present[place] = True

    def settle(self) -> None:
        """Leave out who has too few neighbours that have shared: its masks could never be taken off the sum."""
        while (few := self._present & (self._present[self.neighbours].sum(1) < self.size.graph.threshold)).any():
            self._present &= ~few

    @property
    def present(self) -> list[int]:
        """The nodes that go on."""
        return [node for node, here in zip(self.nodes, self._present, strict=True) if here]

    def sealed_for(self, node: int) -> tuple[Bytes, Bytes]:
        """What its neighbours have sealed for a node, and which of them are present: uint8 [degree]."""
        place = self.place(node)
        theirs = self.neighbours[place]
        here = self._present[theirs]
        sealed: Bytes = self._sealed[theirs, self.numbers[place] - 1] * here[:, None]
        return sealed, here.astype(np.uint8)

    def status(self, survived: Mapping[int, object]) -> Bytes:
        """uint8 [participants], what has become of everybody; `survived` are the nodes whose parts are in the sum."""
        stayed = np.array([node in survived for node in self.nodes])
        found = np.where(stayed, Status.SURVIVED, np.where(self._present, Status.DROPPED, Status.ABSENT))
        return found.astype(np.uint8)
