"""Versions of a base table: what was merged into it, and the shortest way from a version to the newest.

Every so many rounds a strategy may fold the compressed correction into the frozen base table. The packet of what was
merged, exactly as every device decodes it, makes the next version of the table on the server and on each device. A
version is named by the chain of these packets (`fedrec.protocol.version_name`). Who holds an earlier version is sent
the packets since then, or all that is frozen where that is shorter.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from flwr.app import Array

from fedrec.tensors import Tensors
from strategies import records

_NEGLIGIBLE = 1e-12


class Merged(NamedTuple):
    """One merge: the packet of the correction, and the names of the versions before and after it."""

    before: str
    after: str
    packet: Array


@dataclass(frozen=True)
class Merges:
    """The merges of a phase.

    Attributes:
        count: How many there were so far, the number of the newest version.
        round: The round after which the newest was made; 0 before the first merge.
        log: The newest ones, oldest first: those that are together shorter than all that is frozen. From an earlier
            version there is no shorter way.
    """

    count: int = 0
    round: int = 0
    log: tuple[Merged, ...] = ()

    def then(self, merged: Merged, round: int, whole: int) -> Merges:
        """With one more merge, after `round`, where all that is frozen has `whole` bytes."""
        log = (*self.log, merged)
        while log and sum(records.size(each.packet) for each in log) >= whole:
            log = log[1:]
        return Merges(self.count + 1, round, log)

    def since(self, held: Container[str]) -> tuple[Merged, ...]:
        """The merges that lead to the newest version from the newest that is held; none if there is no shorter way."""
        for place in reversed(range(len(self.log))):
            if self.log[place].before in held:
                return self.log[place:]
        return ()

    def state(self) -> tuple[dict[str, Any], Tensors]:
        """For a checkpoint: what is plain, and the packets of the log as tensors of bytes, by the version they make."""
        names = [self.log[0].before, *(merged.after for merged in self.log)] if self.log else []
        packets = {merged.after: torch.from_numpy(merged.packet.numpy().copy()) for merged in self.log}
        return {"merges": self.count, "merged_round": self.round, "versions": names}, packets

    @staticmethod
    def restored(plain: Mapping[str, Any], packets: Mapping[str, torch.Tensor]) -> Merges:
        """The inverse of `state`."""
        names = list(plain["versions"])
        log = [
            Merged(before, after, records.wrap(packets[after].numpy().tobytes())) for before, after in pairwise(names)
        ]
        return Merges(int(plain["merges"]), int(plain["merged_round"]), tuple(log))


class FrozenBytes(NamedTuple):
    """What the frozen tensors of a phase cost who lacks them.

    Attributes:
        whole: Bytes of the packet that holds all of them.
        version: Merges into the base table so far.
        merge: Bytes of the packet of one merge.
    """

    whole: int
    version: int = 0
    merge: int = 0


def expected_bytes(frozen: FrozenBytes, rounds: int, merge_every: int, fraction: float) -> float:
    """What a user downloads of merges in a phase, in expectation, if it is chosen in a round with chance `fraction`.

    Between two merges the base stays as it is, so only the first time counts that a user is chosen there: then it gets
    what was merged since it was last chosen before.
    """
    if not merge_every:
        return 0.0
    chosen = [1 - (1 - fraction) ** min(merge_every, rounds - start) for start in range(0, rounds, merge_every)]
    total = 0.0
    for number, now in enumerate(chosen):
        not_since = now
        for missed in range(1, number + 1):
            before = chosen[number - missed]
            total += not_since * before * min(missed * frozen.merge, frozen.whole)
            not_since *= 1 - before
            if not_since < _NEGLIGIBLE:
                break
    return total
