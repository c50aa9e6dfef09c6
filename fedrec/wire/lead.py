"""How far a model is ahead of a baseline, user by user: what a node of a simulation says of it, as sums over its users.

The server of a simulation has everybody's interactions, and so each user's result under a baseline; the users' results
under the model are on the nodes. Of the differences of the two only the sum and the sum of squares leave a node. None
of it is what a device would send or be told: it counts for nobody's bytes.
"""

from __future__ import annotations

import math
import struct
from typing import NamedTuple

from fedrec.core.errors import PacketError

_FORM = struct.Struct("<qdd")


class Lead(NamedTuple):
    """The differences, model less baseline, of users who were ranked by both.

    Attributes:
        users: How many they are.
        total: Sum of their differences.
        squares: Sum of the squares of these.
    """

    users: int
    total: float
    squares: float

    def packet(self) -> bytes:
        """As it travels."""
        return _FORM.pack(*self)

    @staticmethod
    def read(data: bytes, users: int) -> Lead:
        """Of at most so many users. Raises PacketError (`malformed`) if it cannot be theirs."""
        if len(data) != _FORM.size:
            raise PacketError("malformed", f"a lead has {_FORM.size} bytes, not {len(data)}")
        lead = Lead(*_FORM.unpack(data))
        if not (0 <= lead.users <= users and abs(lead.total) <= lead.users and 0 <= lead.squares <= lead.users):
            raise PacketError("malformed", f"{users} users cannot have {lead}")  # NaN passes no comparison
        return lead

    @property
    def mean(self) -> float:
        """Mean difference."""
        return self.total / self.users

    @property
    def standard_error(self) -> float | None:
        """Of the mean difference, by the differences themselves; None of a single user."""
        if self.users < 2:
            return None
        variance = (self.squares - self.total * self.mean) / (self.users - 1)
        return math.sqrt(max(0.0, variance) / self.users)
