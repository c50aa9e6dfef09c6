"""The byte meter: what each user would have moved as a device of its own, whatever the layout of the simulation.

It counts encoded packets in both directions. A user chosen for a round downloads the model and uploads an update, and,
the first time in a phase, downloads what is sent once. Evaluation has a ledger of its own: evaluating more often, or
never, does not change what training is said to cost. Every user here is asked to rank, also one with nothing held out:
its device cannot tell before it has been asked.

The sizes are those that an exchange declares (`exchanges.declaration`), or of the packets themselves where that is a
bound; which exchanges there are, and what they are for, is nothing to the meter. It keeps sums over users: where the
devices of a node's users would not all send the same, the server is told no more.

A user whose base table has been merged into since it was last sent anything of it downloads what was merged, or all
that is frozen where that is shorter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from federation.exchange import Ledger
from federation.versions import FrozenBytes

_Counts = NDArray[np.int64]
_NEVER = -1
_MOVED = ("up", "down", "one_time", "merges")


class Meter:
    """Bytes of all users together, by phase and direction; and what is frozen that each one was sent last."""

    def __init__(self, phases: list[str]) -> None:
        self._phases = phases
        self._users = 0
        self._moved = dict.fromkeys(_MOVED, 0)
        self._up = [0 for _ in phases]
        self._down = [0 for _ in phases]
        self._one_time = 0
        self._merges = 0
        self._evaluation = 0
        self._crossing = 0
        # The version of what is frozen that a user was sent last in a phase, as it trained and as it was ranked.
        self._trained_in: _Counts = np.zeros((len(phases), 0), dtype=np.int64)
        self._evaluated_in: _Counts = np.zeros((len(phases), 0), dtype=np.int64)

    def grow(self, users: int, enrolment: int) -> None:
        """New users came, up to `users` in all; each moved `enrolment` bytes once (setup down, key up)."""
        new = users - self._users
        if new <= 0:
            return
        self._one_time += new * enrolment
        self._trained_in = np.pad(self._trained_in, ((0, 0), (0, new)), constant_values=_NEVER)
        self._evaluated_in = np.pad(self._evaluated_in, ((0, 0), (0, new)), constant_values=_NEVER)
        self._users = users

    def begin_round(self) -> None:
        """From here on `moved` counts anew."""
        self._moved = dict.fromkeys(_MOVED, 0)

    @property
    def moved(self) -> dict[str, int]:
        """What training has moved since the round began, of all users together."""
        return dict(self._moved)

    def downloaded(self, ledger: Ledger, phase: int, bytes: int) -> None:
        """Users' devices download so many bytes of packets, together."""
        if ledger is Ledger.TRAINING:
            self._down[phase] += bytes
            self._moved["down"] += bytes
        elif ledger is Ledger.EVALUATION:
            self._evaluation += bytes
        else:
            self._one_time += bytes

    def uploaded(self, ledger: Ledger, phase: int, bytes: int) -> None:
        """Users' devices upload so many bytes of packets, together."""
        if ledger is Ledger.TRAINING:
            self._up[phase] += bytes
            self._moved["up"] += bytes
        elif ledger is Ledger.EVALUATION:
            self._evaluation += bytes
        else:
            self._one_time += bytes

    def crossed(self, ledger: Ledger, bytes: int) -> None:
        """So many bytes of what was moved for training were hidden states of a split model, or gradients of them."""
        if ledger is Ledger.TRAINING:
            self._crossing += bytes

    def froze(self, ledger: Ledger, phase: int, users: NDArray[np.int64], frozen: FrozenBytes) -> NDArray[np.int64]:
        """`users` download what they lack of `frozen`: each ledger counts it the first time that it needs it.

        Returns the bytes of each, int64 [users].
        """
        if ledger is Ledger.EVALUATION:
            once, merges = _lacking(self._evaluated_in[phase], users, frozen)
            self._evaluation += int(once.sum() + merges.sum())
            return once + merges
        once, merges = _lacking(self._trained_in[phase], users, frozen)
        self._one_time += int(once.sum())
        self._merges += int(merges.sum())
        self._moved["one_time"] += int(once.sum())
        self._moved["merges"] += int(merges.sum())
        return once + merges

    @property
    def evaluation(self) -> float:
        """Mean bytes per user that evaluation has moved so far."""
        return self._evaluation / max(1, self._users)

    def per_user(self) -> dict[str, Any]:
        """Mean bytes per user over the whole run so far.

        By direction, once, for merges, in all; by phase; and for evaluation. Of a split model also, as `crossing`, what
        of both directions hidden states and gradients of them were.
        """
        users = max(1, self._users)
        by_phase = {
            name: {"up": up / users, "down": down / users}
            for name, up, down in zip(self._phases, self._up, self._down, strict=True)
        }
        up = sum(phase["up"] for phase in by_phase.values())
        down = sum(phase["down"] for phase in by_phase.values())
        one_time, merges = self._one_time / users, self._merges / users
        return {
            "up": up,
            "down": down,
            "one_time": one_time,
            "merges": merges,
            "total": up + down + one_time + merges,
            "by_phase": by_phase,
            "evaluation": self.evaluation,
            **({"crossing": self._crossing / users} if self._crossing else {}),
        }

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything counted, as arrays, for a checkpoint."""
        return {
            "up": np.array(self._up, dtype=np.int64),
            "down": np.array(self._down, dtype=np.int64),
            "one_time": np.array([self._one_time], dtype=np.int64),
            "merges": np.array([self._merges], dtype=np.int64),
            "trained_in": self._trained_in,
            "evaluation": np.array([self._evaluation], dtype=np.int64),
            "evaluated_in": self._evaluated_in,
            "crossing": np.array([self._crossing], dtype=np.int64),
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Count on from what `state` gave; checkpoints of old have a number for each user, where there are sums now."""
        self._users = state["trained_in"].shape[1]
        self._up, self._down = ([int(counts.sum()) for counts in state[way]] for way in ("up", "down"))
        self._one_time, self._merges = int(state["one_time"].sum()), int(state["merges"].sum())
        self._trained_in, self._evaluated_in = state["trained_in"].copy(), state["evaluated_in"].copy()
        self._evaluation = int(state["evaluation"][0])
        self._crossing = int(state["crossing"].sum()) if "crossing" in state else 0


def _lacking(held: _Counts, users: NDArray[np.int64], frozen: FrozenBytes) -> tuple[_Counts, _Counts]:
    """Bytes for each of `users` who lack what is frozen: as it was at first, and what was merged into it since.

    `held` has the newest version that each user of the directory was sent, and is brought up to date. Who is asked to
    go back to an earlier one downloads nothing: a device keeps all to which the server may go back.
    """
    had = held[users]
    held[users] = np.maximum(had, frozen.version)
    missed = frozen.missed
    behind = missed[np.clip(frozen.version - had, 0, len(missed) - 1)]
    return np.where(had == _NEVER, frozen.start, 0), np.where(had == _NEVER, frozen.merged_before, behind)
