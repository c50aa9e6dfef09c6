"""What a node of a simulation says beside its updates of the simulated time that its users took."""

from __future__ import annotations

import math
import struct
from typing import NamedTuple

from fedrec.core.errors import PacketError

_FORM = struct.Struct("<dq")


class Clock(NamedTuple):
    """The time of some users.

    Attributes:
        seconds: Until the slowest of them was done, or given up: at most the deadline, if there is one.
        late: Users who missed the deadline, and whose updates would have counted.
    """

    seconds: float
    late: int

    def packet(self) -> bytes:
        """As it travels. It is of the simulation, and no device would send it: it counts for nobody's bytes."""
        return _FORM.pack(self.seconds, self.late)

    @staticmethod
    def read(data: bytes, users: int) -> Clock:
        """The clock of so many users. Raises PacketError (`malformed`) if it cannot be theirs."""
        if len(data) != _FORM.size:
            raise PacketError("malformed", f"a clock has {_FORM.size} bytes, not {len(data)}")
        seconds, late = _FORM.unpack(data)
        if not (math.isfinite(seconds) and seconds >= 0 and 0 <= late <= users):
            raise PacketError("malformed", f"{users} users cannot take {seconds!r} seconds with {late} of them late")
        return Clock(seconds, late)
