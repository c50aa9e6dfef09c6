"""The state-dir that all workers of a simulation must share: the server leaves a token in it, every worker reads it.

Any worker may be handed any node's message, so what one writes for a user another reads in a later round. On several
machines the folder has to be one and the same; a worker that has only a folder of the same name would start the
users anew and say nothing.
"""

from __future__ import annotations

import platform
import secrets
from functools import lru_cache
from pathlib import Path

from fedrec.core.disk import writing
from fedrec.core.errors import FedrecError
from fedrec.core.whole_files import write_text
from fedrec.wire.protocol import SimulatedData

TOKEN = "token"
"""The name of the file."""


class NotSharedError(FedrecError):
    """A worker of a simulation does not see the server's folders."""


def leave_token(state_dir: Path) -> str:
    """Write a new token into the state-dir and return it. Raises StoreError if it cannot be written."""
    token = secrets.token_hex(16)
    with writing(f"the state-dir {state_dir}", "give another runs_dir"):
        write_text(state_dir / TOKEN, token)
    return token


@lru_cache(maxsize=4)
def require_shared(data: SimulatedData) -> None:
    """Make sure, once in a process, that the server's folders are seen here, before anything is made in them.

    Raises NotSharedError naming the folder, what was expected in it and how to mend it.
    """
    path = Path(data.state_dir) / TOKEN
    try:
        found = path.read_text(encoding="ascii", errors="replace")
        came = "it holds another one" if found != data.token else None
    except OSError as error:
        came = str(error.strerror or error)
    if came is not None:
        raise NotSharedError(_problem("state-dir", data.state_dir, f"{path} with this run's token", came, "runs_dir"))
    if not Path(data.interactions).is_dir():
        raise NotSharedError(_problem("prepared data", data.interactions, "that folder", "there is none", "cache_dir"))


def _problem(what: str, folder: str, expected: str, came: str, key: str) -> str:
    return (
        f"a worker on {platform.node()} does not see the server's {what} {folder}: expected {expected}, {came}. Any "
        f"worker may be given any node, so all machines of a simulation need the same folders: put {key} (and "
        f"{'cache_dir' if key == 'runs_dir' else 'runs_dir'}) on a disk that they share, under the same path"
    )
