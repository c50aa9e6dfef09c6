"""The model that a site received last: kept in its state-dir, so that it can recommend without any server."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from client_app.stores.run_record import ELSEWHERE, run_file
from fedrec.core.disk import writing
from fedrec.core.strict_json import json_line, parsed_object
from fedrec.core.whole_files import write_bytes

RUNS_KEPT = 2
"""Runs of which a site keeps the model, and the private tensors, when it joins another."""

_CHECK = "check"
_NAMED = re.compile("[0-9a-f]{32,64}")  # the digest of a content, or the name of a version of the base table


@dataclass(frozen=True)
class LastModel:
    """A model as it was sent.

    Attributes:
        setup: The run's setup, as JSON.
        phase: The phase to which the model belongs.
        round: The round in which it was sent.
        group: The group whose model it is; empty where there are none.
        frozen: Names what is frozen under it; empty if nothing is.
    """

    setup: str
    phase: int
    round: int
    group: str
    frozen: str


def keep_model(state_dir: Path, run_key: str, about: LastModel, packet: bytes) -> None:
    """Keep a model in the place of the one that this run sent before for the group; those of the newest runs stay.

    Raises StoreError if the disk refuses it.
    """
    folder = state_dir / "models"
    path = run_file(folder, run_key, f".{about.group}.model" if about.group else ".model")
    values = asdict(about)
    head = json_line({**values, _CHECK: _digest(values, packet)}).encode() + b"\n"
    with writing(f"the model of this run in the state-dir {state_dir}", ELSEWHERE):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_bytes(path, head, packet, private=True)
    with suppress(OSError):  # another process may tidy up too
        newest = list(dict.fromkeys(map(run_of, _newest_first(folder))))[:RUNS_KEPT]
        for old in folder.glob("*.model"):
            if run_of(old) not in newest:
                old.unlink()


def kept_models(state_dir: Path) -> list[Path]:
    """The files of the models that are kept, newest first."""
    folder = state_dir / "models"
    return _newest_first(folder) if folder.is_dir() else []


def run_of(path: Path) -> str:
    """The key of the run whose model a file is."""
    return path.name.partition(".")[0]


def read_model(path: Path) -> tuple[LastModel, bytes]:
    """A model that was kept. Raises ValueError if the file is not what was written, OSError if it cannot be read."""
    head, _, packet = path.read_bytes().partition(b"\n")
    values = parsed_object(head)
    check = values.pop(_CHECK, None)
    expected = {"setup": str, "phase": int, "round": int, "group": str, "frozen": str}
    if {name: type(value) for name, value in values.items()} != expected:
        raise ValueError("its first line does not say of which run and round it is")
    if check != _digest(values, packet):
        raise ValueError("it is not what was written: it has another checksum")
    return LastModel(**values), packet


def _digest(values: Mapping[str, object], packet: bytes) -> str:
    digest = hashlib.blake2b(json_line(dict(sorted(values.items()))).encode() + b"\n", digest_size=16)
    digest.update(packet)
    return digest.hexdigest()


def frozen_of_models(state_dir: Path) -> set[str]:
    """Every digest that a kept model names: among them those of all that is frozen and that it cannot do without."""
    named: set[str] = set()
    for path in kept_models(state_dir):
        with suppress(OSError), path.open("rb") as file:  # a newer one may just have come in its place
            named.update(_NAMED.findall(file.readline().decode(errors="replace")))
    return named


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.model"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
