"""A separate program that ends a simulation's processes when the command that started them is gone.

A command that is killed outright can end nothing any more, and Flower's simulation outlives its SuperLink. So the
command starts this beside them and writes to its standard input: the number of every process group, one a line, and
`done` when it has ended them itself. If the input closes without `done`, they are ended here and the private folder
is removed.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time

_PATIENCE = 3.0


def main() -> None:
    """Read groups until the input closes; `sys.argv[1]` is the private folder."""
    groups: set[int] = set()
    for line in sys.stdin:
        if line.strip() == "done":
            return
        groups.add(int(line))
    for signum in (signal.SIGTERM, signal.SIGKILL):
        groups = {group for group in groups if _signal(group, signum)}
        deadline = time.monotonic() + _PATIENCE
        while groups and time.monotonic() < deadline:
            time.sleep(0.1)
            groups = {group for group in groups if _signal(group, 0)}
    shutil.rmtree(sys.argv[1], ignore_errors=True)


def _signal(group: int, signum: int) -> bool:
    """Whether there was somebody to signal."""
    try:
        os.killpg(group, signum)
    except (ProcessLookupError, PermissionError):
        return False
    return True


if __name__ == "__main__":
    main()
