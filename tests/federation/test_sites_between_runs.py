"""What a site keeps of a run, and what it never tells, whichever server asks."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from client_app.answers import app as app_module
from client_app.answers.app import app as client_app
from client_app.answers.counting import count_items
from client_app.answers.node import Node
from client_app.homes.site import Site
from client_app.stores.last_model import RUNS_KEPT
from commands.local_grid import LocalGrid
from exchanges.records import unpack
from fedrec.config.compose import compose
from fedrec.config.paths import settle
from fedrec.core.errors import ConfigError, PacketError
from peft_embeddings.model import BASE
from server_app.run import run
from server_app.setup import make_setup

SITES, USERS, ITEMS = 2, 24, 30
GRAPH = "backbone=fedpergnn"


@pytest.fixture
def sites(tmp_path: Path) -> list[dict[str, Any]]:
    """The node configurations of some sites, beside the server's table of items."""
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"i{item},Item {item}\n" for item in range(ITEMS)))
    rng = np.random.default_rng(0)
    for site in range(SITES):
        lines = [
            f"u{user},i{item},{time}"
            for user in range(site, USERS, SITES)
            for time, item in enumerate(rng.permutation(ITEMS)[:6].tolist())
        ]
        (tmp_path / f"site{site}.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(lines) + "\n")
    return [
        {"interactions": str(tmp_path / f"site{site}.csv"), "state-dir": str(tmp_path / f"state{site}")}
        for site in range(SITES)
    ]


def overrides(folder: Path, *more: str) -> list[str]:
    return [
        "runtime=deployment",
        "dataset=table",
        f"dataset.item_table={folder}/items.csv",
        "base_table.start=random",
        "base_table.dim=4",
        "embedding.rank=2",
        "strategy.rounds=4",
        "strategy.warmup_rounds=2",
        "federation.fraction=0.4",
        "simulation.nodes=1",
        f"runs_dir={folder}/runs",
        f"cache_dir={folder}/cache",
        *more,
    ]


def deploy(folder: Path, sites: list[dict[str, Any]], *more: str) -> list[tuple[float, int]]:
    """Loss and users new to training of each round."""
    texts = overrides(folder, *more)
    app_module._node.cache_clear()
    summary = run(settle(compose(texts, base=None), None), texts, LocalGrid(client_app, sites))
    lines = (Path(summary["run"]) / "metrics.jsonl").read_text().splitlines()
    return [(line["loss"], line["cold_users"]) for line in map(json.loads, lines)]


def test_nothing_of_a_run_whose_folder_was_removed_comes_back_under_its_name(
    tmp_path: Path, sites: list[dict[str, Any]]
) -> None:
    """Sites would take the private tensors that they kept of the other run for those of earlier rounds of this one."""
    deploy(tmp_path, sites, "run_id=r", "seed=1")
    shutil.rmtree(tmp_path / "runs")
    again = deploy(tmp_path, sites, "run_id=r", "seed=2")
    assert again == deploy(tmp_path, sites, "run_id=never-used-before", "seed=2")


def test_a_run_that_goes_on_keeps_its_key(tmp_path: Path, sites: list[dict[str, Any]]) -> None:
    """Whatever becomes of the secret, and of the way to make a key: else its users would start anew."""
    folder = tmp_path / "runs" / "r"

    class Killed(LocalGrid):
        def push_messages(self, messages: Any) -> Any:
            messages = list(messages)
            if any(unpack(message.content).fields.get("round") == 3 for message in messages):
                raise RuntimeError("killed")
            return super().push_messages(messages)

    texts = overrides(tmp_path, "run_id=r", "checkpoint_every=1")
    app_module._node.cache_clear()
    with pytest.raises(RuntimeError, match="killed"):
        run(settle(compose(texts, base=None), None), texts, Killed(client_app, sites))
    before = json.loads((folder / "setup.json").read_text())
    (folder / "secret").unlink()
    texts = ["resume=r", f"runs_dir={tmp_path}/runs"]
    run(settle(compose(texts, base=None), None), texts, LocalGrid(client_app, sites))
    assert json.loads((folder / "setup.json").read_text()) == before
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["cold_users"] for line in lines) <= USERS


def test_real_users_items_are_never_counted_without_noise(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id,title\na,A\nb,B\n")
    exact = "backbone.degree_epsilon=null"
    with pytest.raises(ConfigError, match=r"counted without noise.*real users'; give an epsilon"):
        compose(overrides(tmp_path, GRAPH, exact), base=None)
    # And whatever a server may send: a site does not answer it.
    setup = make_setup(compose(overrides(tmp_path, GRAPH, "run_id=r"), base=None), ITEMS, "", "", None)
    setup = dataclasses.replace(setup, backbone={**setup.backbone, "degree_epsilon": None})
    with pytest.raises(PacketError, match="not counted without noise"):
        count_items(Node(setup, Site(tmp_path / "clicks.csv", tmp_path / "state")))


def test_a_site_that_joins_another_run_deletes_what_older_runs_have_left(
    tmp_path: Path, sites: list[dict[str, Any]]
) -> None:
    """Not more: its secret stays, what all runs need, and what its newest models need."""
    state = tmp_path / "state0"
    of_run: list[set[str]] = []
    for seed in range(4):
        before = {path.name for path in (state / "frozen").glob("*")}
        deploy(tmp_path, sites, f"run_id=r{seed}", f"seed={seed}")
        of_run.append({path.name for path in (state / "frozen").iterdir()} - before)
    assert all(of_run), "each run has left something"
    of_all = of_run[0] - _tables(state)
    secret = (state / "secret").read_bytes()
    for path in (state / "frozen").iterdir():
        os.utime(path, (1e9, 1e9))
    deploy(tmp_path, sites, "run_id=r4", "seed=4")
    left = {path.name for path in (state / "frozen").iterdir()}
    assert left & of_run[0] == of_all
    assert not left & of_run[1], "nobody needs that any more"
    assert of_run[2] | of_run[3] <= left, "their models were kept when the site joined"
    assert (state / "secret").read_bytes() == secret
    with sqlite3.connect(state / "users.sqlite") as file:
        (runs,) = file.execute("SELECT COUNT(*) FROM run").fetchone()
    assert runs == RUNS_KEPT + 1


def _tables(state: Path) -> set[str]:
    """Those of the frozen files that hold a base table."""
    return {path.name for path in (state / "frozen").iterdir() if BASE in load_file(path)}
