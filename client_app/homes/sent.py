"""What left a site, and why something was refused: an append-only log, `sent.jsonl` in its state-dir.

One JSON object a line: when, to which run, in answer to what, for which round, how many bytes of what; or why not. It
holds nothing of users, and is written before anything leaves.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

_LONGEST = 2_000


def log_sent(state_dir: Path, **about: str | int | Mapping[str, int] | None) -> None:
    """Add a line; what is None is left out. Raises OSError: then nothing may leave."""
    entry = {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **about}
    kept = {name: value[:_LONGEST] if isinstance(value, str) else value for name, value in entry.items()}
    line = json.dumps({name: value for name, value in kept.items() if value is not None}) + "\n"
    handle = os.open(state_dir / "sent.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(handle, line.encode())
    finally:
        os.close(handle)
