"""What a node has found lost or damaged at its place, by name: told to the server once, and said in its own log."""

from __future__ import annotations

from collections import Counter
from typing import TypeAlias

Losses: TypeAlias = "Counter[str]"
"""How often each has been found since the server was told last."""

STORE_DAMAGED = "store_damaged"
"""The users' store was not what was written to it: it is put aside, and its users start anew."""

STORE_LOST = "store_lost"
"""The users' store is another than the one that was written to, or older: users who have trained start anew."""

DATA_DAMAGED = "data_damaged"
"""The prepared interactions were not what was prepared: they were prepared anew from the site's own file."""

FROZEN_DAMAGED = "frozen_damaged"
"""What was sent once was not what was kept: it is asked for again."""

SECRET_CHANGED = "secret_changed"
"""The site's secret is another than when it joined the run: its users are known by other keys, and start anew."""

RUN_UNKNOWN = "run_unknown"
"""The server goes on with a run of which the site has nothing: its users start in the middle of it."""
