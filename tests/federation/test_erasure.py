"""A user is forgotten at a site: nothing of it stays but what it has spent, and the server finds one user fewer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from typer.testing import CliRunner

from client_app.homes.erasure import erase
from client_app.homes.forgotten import FORGOTTEN, forgotten, key_of
from client_app.homes.training_budget import LEDGER
from client_app.stores.layout import LAYOUT, layout_of, require_layout
from client_app.stores.store import USERS, PrivateStore
from commands.cli import app
from fedrec.core.errors import StoreError
from fedrec.core.strict_json import parsed_object
from fedrec.core.tensors import TensorSpec
from tests.federation.conftest import Sites

GONE = "u00"
SPEC = {"own": TensorSpec((3,), "float32")}


def holding(folder: Path, *what: bytes) -> list[str]:
    """The files that hold any of these bytes."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path.name for path in files if any(part in path.read_bytes() for part in what)]


def test_nothing_of_the_user_stays_but_what_it_has_spent(sites: Sites) -> None:
    sites.deploy("aggregation=plain")
    state, key = sites.state(), key_of(sites.state(), GONE)
    raw = np.uint64(key).tobytes()
    assert set(holding(state, GONE.encode(), raw)) >= {USERS, "user_ids.npy"}
    kinds = [{"mechanism": "gaussian", "noise_multiplier": 1.0, "in_secret": True, "grid": None}]
    ledger = json.dumps({"kinds": kinds, "users": {f"{key:016x}": {"0": 7}}})
    (state / LEDGER).write_text(ledger)
    found = erase(state, GONE)
    assert found.interactions == 6
    assert found.stores == 1
    assert found.versions >= 1
    assert holding(state, GONE.encode(), raw) == []
    assert holding(state, b"u01") == ["user_ids.npy"]
    assert (state / LEDGER).read_text() == ledger
    assert forgotten(state) == [f"{key:016x}"]
    again = erase(state, GONE)
    assert (again.stores, again.versions) == (0, 0)


def test_a_run_goes_on_without_the_user(sites: Sites) -> None:
    erased = False

    def change(message: Message, ask: Any) -> Message:
        nonlocal erased
        if not erased and "train" in message.metadata.message_type:
            erased = True
            erase(sites.state(), GONE)
        answer: Message = ask(message)
        return answer

    lines = sites.deploy("aggregation=plain", "strategy.rounds=4", "evaluation.every=1", change=change)
    assert erased
    assert lines[-1]["validation"]["users"] == 9
    later = sites.deploy("aggregation=plain", "run_id=s", "evaluation.every=1")
    assert later[0]["validation"]["users"] == 9  # though the site's file still has it
    assert holding(sites.state(), GONE.encode()) == []
    done = CliRunner().invoke(app, ["forget", "--state-dir", str(sites.state()), "--user", GONE, "--undo"])
    assert done.exit_code == 0, done.output
    assert sites.deploy("aggregation=plain", "run_id=t", "evaluation.every=1")[0]["validation"]["users"] == 10


def test_the_command_says_what_is_kept(sites: Sites) -> None:
    sites.deploy("aggregation=plain")
    (sites.state() / f"{USERS}.damaged-1").write_bytes(b"?")
    typed = ["forget", "--state-dir", str(sites.state()), "--user", GONE]
    done = CliRunner().invoke(app, typed)
    assert done.exit_code == 0, done.output
    assert "6 interactions" in done.output
    assert f"kept: what it has spent of its privacy, under the key {key_of(sites.state(), GONE):016x}" in done.output
    assert f"delete it: {USERS}.damaged-1" in done.output
    said = parsed_object(CliRunner().invoke(app, [*typed[:-1], "nobody", "--json"]).output.splitlines()[-1])
    assert said["known"] is False
    nowhere = CliRunner().invoke(app, ["forget", "--state-dir", str(sites.folder), "--user", GONE])
    assert nowhere.exit_code == 1
    assert "it has no secret" in nowhere.output


def test_other_users_and_runs_keep_what_is_theirs(tmp_path: Path) -> None:
    keys = np.arange(1, 400, dtype=np.uint64)
    values = {}
    for run in ("a", "b"):
        store = PrivateStore(tmp_path, run, SPEC)
        for round in (1, 2):
            values[run, round] = {"own": SPEC["own"].zeros(len(keys)) + round + (run == "b")}
            store.save(round, keys, values[run, round], 0)
    gone = np.array([7, 300], dtype=np.uint64)
    assert PrivateStore(tmp_path, "", {}).forget_users(gone) == 8
    for run in ("a", "b"):
        losses: Any = {}
        store = PrivateStore(tmp_path, run, SPEC, losses=losses)
        for round in (1, 2):
            tensors, found = store.load(keys, round + 1)
            assert keys[~found].tolist() == gone.tolist()
            assert (tensors["own"][found] == values[run, round]["own"][found]).all()
        assert losses == {}  # the store is the one that its witness saw


def test_a_damaged_list_of_who_is_forgotten_stops_everything(sites: Sites) -> None:
    sites.deploy("aggregation=plain")
    (sites.state() / FORGOTTEN).write_text("[1]")
    with pytest.raises(StoreError, match="who is forgotten here"):
        erase(sites.state(), GONE)


def test_a_state_dir_has_a_version(sites: Sites) -> None:
    sites.deploy("aggregation=plain")
    assert layout_of(sites.state()) == LAYOUT
    (sites.state() / "layout").unlink()  # as before there were numbers
    require_layout(sites.state())
    assert layout_of(sites.state()) == LAYOUT
    (sites.state() / "layout").write_text(f"{LAYOUT + 1}\n")
    with pytest.raises(StoreError, match="later version of fedrec"):
        require_layout(sites.state())
