"""What belongs to users is nobody else's to read, whatever the umask, also where the folder was open before."""

from __future__ import annotations

import logging
import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from client_app.answers import app as app_module
from client_app.answers.app import app as client_app
from client_app.homes.site import Site, folder_problems
from client_app.stores.pieces import PieceFile
from commands.local_grid import LocalGrid
from commands.supernode import make_launchers
from fedrec.config.compose import compose
from fedrec.config.paths import settle
from server_app.run import run

SMALL = ["base_table.start=random", "base_table.dim=4", "embedding.rank=2", "strategy.rounds=2"]
SMALL += ["strategy.warmup_rounds=1", "evaluation.every=0", "evaluation.baselines=false", "simulation.nodes=1"]


@pytest.fixture(autouse=True)
def generous() -> Iterator[None]:
    """A process that would give everything to everybody."""
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def readable(top: Path) -> list[str]:
    """What others may read or write below a folder, as far as they get."""
    if not mode(top) & 0o077:
        return []
    found = [str(path) for path in top.iterdir() if path.is_file() and mode(path) & 0o077]
    return [*found, *(name for path in top.iterdir() if path.is_dir() for name in readable(path))]


def start(folder: Path, nodes: Any, *more: str) -> Path:
    texts = [*SMALL, f"runs_dir={folder}/runs", f"cache_dir={folder}/cache", "run_id=r", *more]
    app_module._node.cache_clear()
    run(settle(compose(texts, base=None), None), texts, LocalGrid(client_app, nodes))
    return folder / "runs/r"


def test_nobody_else_reads_a_sites_state_or_a_servers_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"i{item},Item {item}\n" for item in range(9)))
    clicks = "".join(f"u{user},i{(user + time) % 9},{time}\n" for user in range(6) for time in range(4))
    (tmp_path / "clicks.csv").write_text("user_id,item_id,timestamp\n" + clicks)
    state = tmp_path / "state"
    state.mkdir(mode=0o755)
    nodes = [{"interactions": str(tmp_path / "clicks.csv"), "state-dir": str(state)}]
    with caplog.at_level(logging.WARNING, "fedrec"):
        folder = start(
            tmp_path, nodes, "runtime=deployment", "dataset=table", f"dataset.item_table={tmp_path}/items.csv"
        )
    assert mode(state) == 0o700
    assert caplog.text.count(f"{state} was open to others (mode 755)") == 1
    for name in ("users.sqlite", "secret"):
        assert mode(state / name) == 0o600, name
    for name in ("models", "frozen", "prepared", "written", "interactions"):
        assert (state / name).is_dir()
        assert not mode(state / name) & 0o022, name
    assert mode(folder) == 0o700
    assert readable(state) == readable(folder) == []


def test_nobody_else_reads_what_simulated_users_keep(tmp_path: Path) -> None:
    folder = start(tmp_path, 2, "dataset.n_users=20", "dataset.n_items=50")
    assert mode(folder) == mode(folder / "state") == 0o700
    assert mode(folder / "state/users.sqlite") == 0o600
    assert readable(folder) == []
    (data,) = (tmp_path / "cache/interactions").iterdir()
    assert mode(data) == 0o777, "the cache holds what the data set does, and is shared as the umask says"


def test_nobody_else_reads_or_changes_what_starts_a_sites_tasks(tmp_path: Path) -> None:
    make_launchers(tmp_path / "launch", {"state-dir": str(tmp_path)})
    modes = {path.name: mode(path) for path in [tmp_path / "launch", *(tmp_path / "launch").iterdir()]}
    assert modes.pop("site.json") == 0o600
    assert {"launch", "flwr-clientapp", "flower-superexec"} <= modes.keys()
    assert set(modes.values()) == {0o700}


def test_a_journal_is_as_closed_as_its_store(tmp_path: Path) -> None:
    path = tmp_path / "users.sqlite"
    with sqlite3.connect(path) as file:  # a store of before, open to all
        file.execute("CREATE TABLE other (number INTEGER)")
        file.execute("DROP TABLE other")
    path.chmod(0o644)
    store = PieceFile(path, synced=True)
    with store.transaction(writing=True):
        store.set_resumed("r", 1)
        assert mode(tmp_path / "users.sqlite-journal") == 0o600
    assert mode(path) == 0o600
    store.close()


def test_a_state_dir_of_somebody_else_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o777)

    def refuse(self: Path, mode: int, **_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    (problem,) = folder_problems(Site(tmp_path / "clicks.csv", state))
    assert "cannot be made, or closed to others (Operation not permitted)" in problem
