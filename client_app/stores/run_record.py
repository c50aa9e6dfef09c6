"""What a site remembers of a run that it has joined: one small file, which proves itself, in its state-dir.

In deployment every message is a process of its own, and the runtime forgets when a SuperNode is started again. So what
must stay the same for as long as the run lasts is written down when the site joins: what it was told, what was prepared
for it, and under which secret its users are known.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from fedrec.core.disk import writing
from fedrec.core.errors import PacketError
from fedrec.core.strict_json import json_line
from fedrec.core.whole_files import write_bytes

ELSEWHERE = "give the site another state-dir"
"""What to do if a state-dir cannot be written."""

_RUN_KEY = re.compile(r"[0-9a-f]{16}")
_CHECK = "check"


@dataclass(frozen=True)
class RunRecord:
    """What is remembered.

    Attributes:
        source: Names the site's file as it was, how it was read, and the list of items.
        store: Name of the folder of the prepared interactions.
        n_items: Rows of the catalogue for which they were prepared.
        secret: Names the secret of which the users' keys were made; who reads it cannot tell the secret.
        setup: What the server told, as JSON; nothing that it tells later may contradict it.
        ended: The round after which the run's test was answered; 0: it was not.
    """

    source: str
    store: str
    n_items: int
    secret: str
    setup: str
    ended: int


def contradictions(record: RunRecord, setup: str) -> list[str]:
    """The keys in which another setup differs from that which was told first, among those that both have.

    A newer version of fedrec may have more of them: a run may be resumed with it.
    """
    before, now = json.loads(record.setup), json.loads(setup)
    return sorted(key for key in before.keys() & now.keys() if before[key] != now[key])


def run_file(folder: Path, run_key: str, suffix: str) -> Path:
    """The file of a run in a folder. Raises PacketError (`malformed`) if the key, which the server sent, is none."""
    if not _RUN_KEY.fullmatch(run_key):
        raise PacketError("malformed", f"a run's key is 16 hexadecimal digits, not {run_key!r}")
    return folder / f"{run_key}{suffix}"


def record_file(state_dir: Path, run_key: str) -> Path:
    """Where the record of a run is. Raises PacketError (`malformed`) if the key is none."""
    return run_file(state_dir / "prepared", run_key, ".json")


def read_record(path: Path) -> RunRecord | None:
    """The record in a file; None if there is none, or it is not what was written."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        check = values.pop(_CHECK)
        types = {name: type(value).__name__ for name, value in values.items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    expected = {field.name: str(field.type) for field in dataclasses.fields(RunRecord)}
    return RunRecord(**values) if types == expected and check == _digest(values) else None


def write_record(path: Path, record: RunRecord) -> None:
    """Write the record of a run. Raises StoreError if the disk refuses it."""
    values = dataclasses.asdict(record)
    with writing(f"what this site remembers of the run in {path.parent}", ELSEWHERE):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_bytes(path, json_line({**values, _CHECK: _digest(values)}).encode(), private=True)


def _digest(values: dict[str, object]) -> str:
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=16).hexdigest()
