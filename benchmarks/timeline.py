"""When the stages of a start were reached: stamps that the processes of a run leave in one file.

Like `benchmarks.phases` it imports nothing of the benchmarks, so that a copy of it can travel inside a Flower app.
"""

from __future__ import annotations

import importlib
import json
import os
import time
from collections.abc import Sequence
from functools import wraps
from pathlib import Path
from typing import Any

SERVER = (
    ("configuration", "server_app.run", "RunFolder.__init__"),
    ("data", "server_app.run", "load"),
    ("base table", "server_app.run", "base_table"),
    ("baselines", "server_app.run", "simulated_baselines"),
    ("enrolled", "federation.roster", "Roster.wait"),
    ("first round", "server_app.watching", "Recorder.on_round"),
)
CLIENT = (("first message", "client_app.homes.users", "LocalUsers.__init__"),)
"""Stage, module and dotted name: the stage is reached when the function returns."""


def stamp(path: str, name: str) -> None:
    """Append the name, this process and the time to a file."""
    line = json.dumps({"name": name, "process": os.getpid(), "time": time.time()})
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def install(path: str, targets: Sequence[tuple[str, str, str]]) -> None:
    """Stamp the return of every target from now on."""
    for name, module, dotted in targets:
        owner: Any = importlib.import_module(module)
        *steps, last = dotted.split(".")
        for step in steps:
            owner = getattr(owner, step)
        setattr(owner, last, _stamped(path, name, getattr(owner, last)))


def _stamped(path: str, name: str, inner: Any) -> Any:
    @wraps(inner)
    def then_stamp(*args: Any, **kwargs: Any) -> Any:
        try:
            return inner(*args, **kwargs)
        finally:
            stamp(path, name)

    return then_stamp
