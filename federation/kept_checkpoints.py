"""How far back devices keep versions of what is theirs: as far as any checkpoint that the server keeps may need."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from federation.checkpoint import Checkpoint


class KeptCheckpoints:
    """What each checkpoint that is kept needs of users' private tensors (`Checkpoint.needs`)."""

    def __init__(self, most: int) -> None:
        """Of a run that keeps so many; before the first one it may be begun anew."""
        self._needs: deque[int] = deque([0], maxlen=most)
        self._newest = 0

    def restore(self, needs: Sequence[int], newest: int) -> None:
        """Go on with those that are there, the newest last: that after the round `newest`."""
        self._needs.extend(needs)
        self._newest = newest

    def add(self, made: Checkpoint) -> None:
        """One more is kept, and perhaps the oldest no more."""
        if made.round == self._newest:  # the same again, of a run that was resumed after its last round
            self._needs.pop()
        self._needs.append(made.needs)
        self._newest = made.round

    @property
    def oldest(self) -> int:
        """The round of the oldest version that one of them needs."""
        return min(self._needs)
