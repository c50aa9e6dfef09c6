"""Versions of what devices hold: what was merged into it, and the shortest way from a version to the newest.

Every so many rounds a strategy may fold the compressed correction into the frozen base table, or a downlink moves the
trained tables that devices hold by a step. The packet of what was merged, or of the step, exactly as every device
decodes it, makes the next version of the table on the server and on each device. A version is named by the chain of
these packets (`fedrec.wire.protocol.version_name`). Who holds an earlier version is sent the packets since then, or all
that is held where that is shorter. Who holds nothing is sent the first packet of the phase, which a lossy codec makes
short, and what was merged since, or all that is held now.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from flwr.app import Array
from numpy.typing import NDArray

from exchanges import records
from fedrec.core.errors import StoreError
from fedrec.core.tensors import Tensors
from fedrec.wire.packet import of_another_version

NOTHING = ""
"""The version before the first, which everybody holds."""

_NEGLIGIBLE = 1e-12

OF_ANOTHER_PROTOCOL = (
    "the checkpoint is one of another version of the protocol, which devices would refuse: go on with the fedrec that "
    "began the run (its version is in manifest.json), or start a new run"
)


class Merged(NamedTuple):
    """One merge: the packet of the correction, and the names of the versions before and after it.

    The first packet of a phase stands in the log as one that was merged into `NOTHING`.
    """

    before: str
    after: str
    packet: Array


@dataclass(frozen=True)
class Merges:
    """The merges of a phase.

    Attributes:
        count: How many there were so far, the number of the newest version.
        round: The round after which the newest was made; 0 before the first merge.
        log: The newest ones, oldest first, and before them the first packet of the phase: those that are together
            shorter than all that is frozen. From an earlier version there is no shorter way.
    """

    count: int = 0
    round: int = 0
    log: tuple[Merged, ...] = ()

    def then(self, merged: Merged, round: int, whole: int, start: Array) -> Merges:
        """With one more merge, after `round`.

        Args:
            merged: The merge.
            round: After which it was made.
            whole: Bytes of all that is frozen.
            start: What was frozen before the first merge, as it is sent.
        """
        begun = self.log if self.count else (Merged(NOTHING, merged.before, start),)
        log = (*begun, merged)
        while log and sum(records.size(each.packet) for each in log) >= whole:
            log = log[1:]
        return Merges(self.count + 1, round, log)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of the packets of the log, without the first of the phase."""
        return tuple(records.size(each.packet) for each in self.log if each.before != NOTHING)

    def since(self, held: Container[str]) -> tuple[Merged, ...]:
        """The merges that lead to the newest version from the newest that is held; none if there is no shorter way."""
        for place in reversed(range(len(self.log))):
            if self.log[place].before in held or self.log[place].before == NOTHING:
                return self.log[place:]
        return ()

    def state(self) -> tuple[dict[str, Any], Tensors]:
        """For a checkpoint: what is plain, and the packets of the log as tensors of bytes, by the version they make."""
        names = [self.log[0].before, *(merged.after for merged in self.log)] if self.log else []
        packets = {merged.after: torch.from_numpy(merged.packet.numpy().copy()) for merged in self.log}
        return {"merges": self.count, "merged_round": self.round, "versions": names}, packets

    @staticmethod
    def restored(plain: Mapping[str, Any], packets: Mapping[str, torch.Tensor]) -> Merges:
        """The inverse of `state`. Raises StoreError if a fedrec of another protocol has written it."""
        names = list(plain["versions"])
        if any(of_another_version(packet.numpy()[:6].tobytes()) for packet in packets.values()):
            raise StoreError(OF_ANOTHER_PROTOCOL)
        log = [
            Merged(before, after, records.wrap(packets[after].numpy().tobytes())) for before, after in pairwise(names)
        ]
        return Merges(int(plain["merges"]), int(plain["merged_round"]), tuple(log))


class Frozen(NamedTuple):
    """What a participant of an exchange must hold.

    Attributes:
        once: Wrapped packets by the digest of their content. A node gets those that it is not known to hold along with
            the message that needs them.
        merges: What was merged into the base table among them: the shorter way for who holds an older version.
        bytes: What who lacks it is charged with; None: nothing, for everybody holds it from joining on.
    """

    once: Mapping[str, Array]
    merges: Merges
    bytes: FrozenBytes | None = None


NOTHING_FROZEN = Frozen({}, Merges())


def lacking(once: Mapping[str, Array], merges: Merges, held: Container[str]) -> tuple[dict[str, Array], dict[str, str]]:
    """The arrays and fields that bring a node up to date.

    Args:
        once: What every node must hold, by name.
        merges: The shorter way to the one of them that is a version of the base table.
        held: Names of what the node holds.
    """
    missing = {name: packet for name, packet in once.items() if name not in held}
    way = merges.since(held) if merges.log and merges.log[-1].after in missing else ()
    if not way:
        return {records.FROZEN + name: packet for name, packet in missing.items()}, {}
    del missing[way[-1].after]
    if way[0].before == NOTHING:
        missing[way[0].after] = way[0].packet
        way = way[1:]
    arrays = {records.FROZEN + name: packet for name, packet in missing.items()}
    arrays |= {records.MERGED + merged.after: merged.packet for merged in way}
    return arrays, {records.VERSIONS: " ".join([way[0].before, *(merged.after for merged in way)])}


class FrozenBytes(NamedTuple):
    """What the frozen tensors of a phase cost who lacks them.

    Attributes:
        whole: Bytes of the packet that holds all of them, exactly.
        version: Merges so far.
        merges: Bytes of the packets of the newest ones, oldest first; from before them there is no shorter way.
        lossy: Bytes of the packet that holds them as they were before the first merge, if the codec makes it shorter.
    """

    whole: int
    version: int = 0
    merges: tuple[int, ...] = ()
    lossy: int | None = None

    @property
    def start(self) -> int:
        """Bytes of the first packet of the phase."""
        return self.whole if self.lossy is None else self.lossy

    @property
    def missed(self) -> NDArray[np.int64]:
        """int64 [n + 1], bytes for who has missed 0, 1, ..., n merges; who has missed more than n, as many as n."""
        together = np.cumsum([0, *reversed(self.merges)], dtype=np.int64)
        missed: NDArray[np.int64] = np.minimum(np.append(together, self.whole), self.whole)
        return missed

    @property
    def merged_before(self) -> int:
        """Bytes beyond the first packet for who holds nothing."""
        missed = self.missed
        return min(int(missed[min(self.version, len(missed) - 1)]), self.whole - self.start)


def expected_bytes(whole: int, start: int, merge: int, rounds: int, merge_every: int, fraction: float) -> float:
    """What a user downloads of merges in a phase, in expectation, if it is chosen in a round with chance `fraction`.

    Between two merges the base stays as it is, so only the first time counts that a user is chosen there: then it gets
    what was merged since it was last chosen before, or since the beginning if it never was.

    Args:
        whole: Bytes of the packet of all that is held.
        start: Bytes of the first packet of the phase.
        merge: Bytes of the packet of a merge.
        rounds: Of the phase.
        merge_every: Rounds between two merges; 0: there are none.
        fraction: Share of the users who are chosen in a round.
    """
    if not merge_every:
        return 0.0
    chosen = [1 - (1 - fraction) ** min(merge_every, rounds - start) for start in range(0, rounds, merge_every)]
    total, nobody_yet = 0.0, 1.0
    for number, now in enumerate(chosen):
        not_since, never = now, now * nobody_yet
        nobody_yet *= 1 - now
        for missed in range(1, number + 1):
            if missed * merge >= whole or not_since < _NEGLIGIBLE:  # from here on the whole is the shortest
                total += (not_since - never) * whole
                break
            before = chosen[number - missed]
            total += not_since * before * missed * merge
            not_since *= 1 - before
        total += never * min(number * merge, whole - start)
    return total
