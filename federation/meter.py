"""The byte meter: what each user would have moved as a device of its own, whatever the layout of the simulation.

It counts encoded packets in both directions. A user chosen for a round downloads the model and uploads an update, and,
the first time in a phase, downloads what is sent once. Evaluation has a ledger of its own: evaluating more often, or
never, does not change what training is said to cost. Every user here is asked to rank, also one with nothing held out:
its device cannot tell before it has been asked.

Where users exchange what they disclose between two rounds (`federation.expansion`), all who are here move that, and it
counts among what training moves up and down in the phase.

A user whose base table has been merged into since it was last sent anything of it downloads what was merged, or all
that is frozen where that is shorter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from federation.versions import FrozenBytes

_Counts = NDArray[np.int64]
_NEVER = -1


class Meter:
    """Bytes per user (by its number in the directory), phase and direction."""

    def __init__(self, phases: list[str]) -> None:
        self._phases = phases
        self._users = 0
        self._up = [np.zeros(0, dtype=np.int64) for _ in phases]
        self._down = [np.zeros(0, dtype=np.int64) for _ in phases]
        self._one_time: _Counts = np.zeros(0, dtype=np.int64)
        self._merges: _Counts = np.zeros(0, dtype=np.int64)
        self._evaluation = 0
        # The version of what is frozen that a user was sent last in a phase, as it trained and as it was ranked.
        self._trained_in: _Counts = np.zeros((len(phases), 0), dtype=np.int64)
        self._evaluated_in: _Counts = np.zeros((len(phases), 0), dtype=np.int64)

    def grow(self, users: int, enrolment: int) -> None:
        """New users came, up to `users` in all; each moved `enrolment` bytes once (setup down, key up)."""
        new = users - self._users
        if new <= 0:
            return
        self._up = [np.pad(counts, (0, new)) for counts in self._up]
        self._down = [np.pad(counts, (0, new)) for counts in self._down]
        self._one_time = np.pad(self._one_time, (0, new), constant_values=enrolment)
        self._merges = np.pad(self._merges, (0, new))
        self._trained_in = np.pad(self._trained_in, ((0, 0), (0, new)), constant_values=_NEVER)
        self._evaluated_in = np.pad(self._evaluated_in, ((0, 0), (0, new)), constant_values=_NEVER)
        self._users = users

    def reported(self, users: NDArray[np.int64], packet: int) -> None:
        """`users` upload a packet of `packet` bytes that is asked for once, before the first round."""
        self._one_time[users] += packet

    def downloaded(self, phase: int, users: NDArray[np.int64], model: int, frozen: FrozenBytes) -> dict[str, int]:
        """Chosen `users` download a model packet of `model` bytes, and what they lack of `frozen`; the sums."""
        once, merges = _lacking(self._trained_in[phase], users, frozen)
        self._down[phase][users] += model
        self._one_time[users] += once
        self._merges[users] += merges
        return {"up": 0, "down": model * len(users), "one_time": int(once.sum()), "merges": int(merges.sum())}

    def uploaded(self, phase: int, users: NDArray[np.int64], update: int) -> int:
        """`users` upload an update packet of `update` bytes; the sum."""
        self._up[phase][users] += update
        return update * len(users)

    def exchanged(self, phase: int, users: NDArray[np.int64], up: int, down: int) -> dict[str, int]:
        """`users`, chosen or not, upload `up` bytes between two rounds and download `down`; the sums."""
        self._up[phase][users] += up
        self._down[phase][users] += down
        return {"up": up * len(users), "down": down * len(users)}

    def evaluated(self, phase: int, users: NDArray[np.int64], training: int, model: int, frozen: FrozenBytes) -> None:
        """`users` are asked to rank; `training` of them download the same model in the same message to train anyway."""
        once, merges = _lacking(self._evaluated_in[phase], users, frozen)
        self._evaluation += (len(users) - training) * model + int(once.sum() + merges.sum())

    def ranked(self, users: int, metrics: int) -> None:
        """`users` users upload their metrics of `metrics` bytes."""
        self._evaluation += users * metrics

    @property
    def evaluation(self) -> float:
        """Mean bytes per user that evaluation has moved so far."""
        return self._evaluation / max(1, self._users)

    def per_user(self) -> dict[str, Any]:
        """Mean bytes per user over the whole run so far.

        By direction, once, for merges, in all; by phase; and for evaluation.
        """
        users = max(1, self._users)
        by_phase = {
            name: {"up": float(up.sum()) / users, "down": float(down.sum()) / users}
            for name, up, down in zip(self._phases, self._up, self._down, strict=True)
        }
        up = sum(phase["up"] for phase in by_phase.values())
        down = sum(phase["down"] for phase in by_phase.values())
        one_time, merges = float(self._one_time.sum()) / users, float(self._merges.sum()) / users
        return {
            "up": up,
            "down": down,
            "one_time": one_time,
            "merges": merges,
            "total": up + down + one_time + merges,
            "by_phase": by_phase,
            "evaluation": self.evaluation,
        }

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything counted, as arrays, for a checkpoint."""
        return {
            "up": np.stack(self._up),
            "down": np.stack(self._down),
            "one_time": self._one_time,
            "merges": self._merges,
            "trained_in": self._trained_in,
            "evaluation": np.array([self._evaluation], dtype=np.int64),
            "evaluated_in": self._evaluated_in,
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Count on from what `state` gave."""
        self._users = len(state["one_time"])
        self._up, self._down = [counts.copy() for counts in state["up"]], [counts.copy() for counts in state["down"]]
        self._one_time, self._merges = state["one_time"].copy(), state["merges"].copy()
        self._trained_in, self._evaluated_in = state["trained_in"].copy(), state["evaluated_in"].copy()
        self._evaluation = int(state["evaluation"][0])


def _lacking(held: _Counts, users: NDArray[np.int64], frozen: FrozenBytes) -> tuple[_Counts, _Counts]:
    """Bytes for each of `users` who lack what is frozen: as it was at first, and what was merged into it since.

    `held` has the version that each user of the directory was sent last, and is brought up to date.
    """
    had = held[users]
    held[users] = frozen.version
    behind = np.minimum((frozen.version - had) * frozen.merge, frozen.whole)
    return np.where(had == _NEVER, frozen.start, 0), np.where(had == _NEVER, frozen.merged_before, behind)
