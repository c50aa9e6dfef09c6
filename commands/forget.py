"""`fedrec forget`: a user is taken out of what a site keeps, and out of all that it will prepare."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from client_app.homes.erasure import erase
from client_app.homes.forgotten import key_of, remember
from client_app.stores.layout import require_layout
from commands.places import require_state_dir
from fedrec.core.errors import FedrecError


def forget(state_dir: Path, user: str, *, undo: bool) -> dict[str, Any]:
    """Forget a user, or let it come back, as plain data for JSON.

    Args:
        state_dir: Of the site.
        user: By its id in the site's file.
        undo: It may come back, with the data that the site's file has of it then.

    Raises FedrecError if there is no such folder, or something in it cannot be read or written.
    """
    require_state_dir(state_dir)
    if not (state_dir / "secret").is_file():
        raise FedrecError(f"--state-dir {state_dir}: no site has been here, for it has no secret; give the SuperNode's")
    require_layout(state_dir)
    if undo:
        remember(state_dir, key_of(state_dir, user), forget=False)
        return {"state_dir": str(state_dir), "user": user, "forgotten": False}
    found = erase(state_dir, user)
    return {
        "state_dir": str(state_dir),
        "user": user,
        "forgotten": True,
        "known": bool(found.stores or found.versions),
        "interactions": found.interactions,
        "prepared": found.stores,
        "private_versions": found.versions,
        "kept": {"key_in_ledger": f"{found.key:016x}", "models": found.models, "aside": list(found.aside)},
    }


def show_forgotten(found: Mapping[str, Any], console: Console) -> None:
    """Say what was deleted, and what was not."""
    if not found["forgotten"]:
        lines = [f"user {found['user']} is no longer forgotten: the next run takes it as the site's file has it"]
    else:
        kept = found["kept"]
        deleted, data, versions = found["interactions"], found["prepared"], found["private_versions"]
        lines = [
            f"user {found['user']} is forgotten: deleted {deleted:,} interactions in {data:,} prepared data sets and "
            f"{versions:,} versions of its private tensors",
            *([] if found["known"] else ["nothing was found of it; is the id written as in the site's file?"]),
            "it is left out of all that is prepared from now on; delete it from the site's own file, and from copies",
            f"kept: what it has spent of its privacy, under the key {kept['key_in_ledger']}",
            f"kept: {kept['models']} models to which it may have contributed, as one of many. Nothing takes it out of "
            "them, nor of those that the server and other sites have: they are without it when they are trained anew",
            *(f"may hold something of it, delete it: {name}" for name in kept["aside"]),
        ]
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
