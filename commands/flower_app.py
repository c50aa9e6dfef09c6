"""A Flower app directory out of the packages that run: what `flwr run` bundles and sends to the nodes.

A checkout and an installed wheel give the same directory, byte by byte, so that nodes run the very code of the command.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fedrec.core.errors import FederationError

PACKAGES = ("fedrec", "peft_embeddings", "exchanges", "federation", "strategies", "client_app", "server_app", "conf")
"""The packages that travel; `commands` stays at home."""

_ROOT = Path(__file__).resolve().parent.parent


def assemble(into: Path) -> Path:
    """Copy the running packages, `pyproject.toml` and `LICENSE` into `into`, and return it.

    Args:
        into: Folder to make; it must not exist yet.
    """
    into.mkdir(parents=True)
    for package in PACKAGES:
        source = _ROOT / package
        if not source.is_dir():
            raise FederationError(
                f"package {package!r} is not at {source}, where it belongs beside `commands`: install fedrec anew"
            )
        for path in sorted(source.rglob("*")):
            if path.suffix in {".py", ".yaml"} and "__pycache__" not in path.parts:
                target = into / path.relative_to(_ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copyfile(_app_file(name), into / name)
    return into


def bundle_digest() -> str:
    """SHA-256, in hexadecimal, of the bundle that `flwr run` makes of this installation or checkout.

    Flower writes files in the order of their names, with one date for all and not compressed, so that it is the same
    wherever the code is.
    """
    from flwr.cli.build import build_fab_from_disk  # not needed by what else this file does

    with tempfile.TemporaryDirectory() as folder:
        return hashlib.sha256(build_fab_from_disk(assemble(Path(folder) / "fedrec"))).hexdigest()


def _app_file(name: str) -> Path:
    """Where the app's own file is: inside the package in a wheel, at the root in a checkout."""
    candidates = (_ROOT / "fedrec" / "app" / name, _ROOT / name)
    for path in candidates:
        if path.is_file():
            return path
    places = " or ".join(str(path) for path in candidates)
    raise FederationError(f"{name} of the Flower app was expected at {places} and is not there: install fedrec anew")


def run_config(overrides: Sequence[str]) -> str:
    """The run's configuration as TOML: all overrides in one string that `shlex.split` takes apart again.

    It is for a file given to `flwr run --run-config`: on the command line itself Flower takes pairs apart with a
    pattern that knows no escapes, so that a quote inside a value would be lost.
    """
    # A JSON string is a TOML string, but for DEL, which JSON leaves as it is.
    text = json.dumps(shlex.join(overrides), ensure_ascii=False).replace("\x7f", "\\u007f")
    return f"overrides = {text}\n"
