"""The largest numbers that a configuration, and so a server's setup, may hold.

They are far above what any run needs, and below what makes arithmetic overflow or a loop endless: a number over the
network is never a reason for an exception from the depths. How much of them a site grants is its own policy's to say.
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Le, MaxLen, MinLen
from pydantic import Strict

MOST_ITEMS = 2**31 - 1
"""Rows of a catalogue, and whatever else is counted: item ids are 32-bit numbers."""

MOST_DIMENSIONS = 65_536
"""Numbers of an item vector, or of a rank."""

MOST_WIDTH = 8_192
"""Numbers of a hidden layer."""

LARGEST_TABLE = 2**33
"""Numbers of a table [items, dim]: the two bounds above hold together."""

MOST_NEGATIVES = 10_000
"""Negatives of a user or positive; and of a sampled ranking, whose draw takes time with their square."""

MOST_STEPS = 10_000
"""Local steps of a round, and of solving."""

MOST_ROUNDS = 999_999
"""Rounds of a run: the names of checkpoints have six digits."""

MOST_HISTORY = 65_536
"""Items of a history that a backbone reads in order; attention holds the square of them."""

MOST_CONTEXTS = 64
"""Contexts of a user's history that it trains on in a round."""

MOST_GROUPS = 256
"""Groups of users with a model each."""

MOST_GRADES = 64
"""Grades of devices that a run tells apart."""

MOST_BYTES = 2**40
"""Of a reply: more than any message can have."""

MOST_MEGABITS = 1e6
"""A second."""

MOST_EXAMPLES = 1e12
"""That a device trains on in a second."""

MOST_SECONDS = 1e7
"""Of a round, of a reply, of a latency: some four months."""

MOST_LAYERS = 64
MOST_CUT_OFFS = 100
MOST_WEIGHT = 1_000_000
LARGEST_NORM = 1e6
LARGEST_RATE = 1e6
"""Learning rates, decays, weights of losses."""

LARGEST_START = 1e6
"""Standard deviation of a start, and factors of vectors."""

LONGEST_HALF_LIFE = 1e12
LARGEST_SEED = 2**64 - 1

HiddenWidths = Annotated[
    tuple[Annotated[int, Ge(1), Le(MOST_WIDTH)], ...], Strict(False), MinLen(1), MaxLen(MOST_LAYERS)
]
"""Widths of hidden layers."""

CutOffs = Annotated[tuple[Annotated[int, Ge(1), Le(MOST_ITEMS)], ...], MinLen(1), MaxLen(MOST_CUT_OFFS)]
"""Cut-offs of ranking metrics."""

GRADES = "[a-z0-9_-]{0,32}"
"""What a node may say of its device, as a regular expression."""
