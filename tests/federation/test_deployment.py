"""Nodes with users in files of their own: what they learn, what crosses, and what stays with them."""

from __future__ import annotations

import csv
import json
import logging
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from flwr.app import Message
from safetensors.torch import load_file

from client_app.answers import app as app_module
from client_app.answers.app import app as client_app
from client_app.stores.pieces import close_file
from commands.local_grid import LocalGrid
from exchanges.records import unpack
from fedrec.config.compose import compose
from fedrec.config.paths import settle
from fedrec.core.errors import FederationError
from fedrec.core.keys import simulation_secret
from fedrec.wire.item_list import item_list_packet, pack_item_list
from server_app.run import run

Row = tuple[str, str, int]
USERS, SITES = 48, 4
OVERRIDES = [
    "dataset=table",
    "base_table.dim=8",
    "base_table.start=random",
    "embedding.rank=2",
    "strategy.rounds=4",
    "strategy.warmup_rounds=2",
    "federation.fraction=0.5",
    "evaluation.every=2",
    "optim.solve_epochs=2",
    "evaluation.baselines=false",
]


@pytest.fixture(scope="session")
def rows(real: Path) -> list[Row]:
    """The interactions of some users of the real data, up to 60 of each."""
    taken: dict[str, int] = {}
    found = []
    for line in (real / "ml-100k" / "u.data").read_text().splitlines():
        user, item, _, time = line.split("\t")
        if int(user) <= USERS and (count := taken.get(user, 0)) < 60:
            taken[user] = count + 1
            found.append((f"u{user}", item, int(time)))
    return found


class RecordingGrid(LocalGrid):
    """Keeps every message that crosses."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.sent: list[Message] = []
        self.received: list[Message] = []

    def answer(self, message: Message) -> Message:
        self.sent.append(message)
        self.received.append(self.respond(message))
        return self.received[-1]

    def respond(self, message: Message) -> Message:
        return super().answer(message)


class Shop:
    """The server's item table, and the sites' files."""

    def __init__(self, rows: Sequence[Row], folder: Path) -> None:
        self.folder = folder
        self.items = sorted({item for _, item, _ in rows}, key=int)
        table = "item_id,title\n" + "".join(f"{item},Film {item} of topic {int(item) % 7}\n" for item in self.items)
        (folder / "items.csv").write_text(table)
        with (folder / "all.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("user_id", "item_id", "timestamp"), *rows])
        self.configs = [
            self._site(site, [row for row in rows if int(row[0][1:]) % SITES == site]) for site in range(SITES)
        ]

    def _site(self, site: int, rows: list[Row]) -> dict[str, Any]:
        """Each in another form; the last with names of its own, an unknown item, and lines that cannot be read."""
        names = ("who", "what", "when") if site == 3 else ("user_id", "item_id", "timestamp")
        path = self.folder / f"site{site}{('.csv', '.tsv', '.parquet', '.jsonl')[site]}"
        if path.suffix == ".parquet":
            columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
            pyarrow.parquet.write_table(pyarrow.table(columns), path)
        elif path.suffix == ".jsonl":
            lines = [json.dumps(dict(zip(names, row, strict=True))) for row in [*rows, ("u3", "nowhere", 1)]]
            path.write_text("\n".join(["{", *lines, "[]", '{"who": "marker-user", "what": 4.5, "when": 7}']))
        else:
            with path.open("w", newline="") as file:
                writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
                writer.writerows([names, *rows])
        config = {"interactions": str(path), "state-dir": str(self.folder / f"state{site}")}
        if site == 3:
            config |= {"user-column": "who", "item-column": "what", "time-column": "when"}
        return config

    def overrides(self, run_id: str, *more: str) -> list[str]:
        places = [f"runs_dir={self.folder}/runs", f"cache_dir={self.folder}/cache", f"run_id={run_id}"]
        return [*OVERRIDES, f"dataset.item_table={self.folder}/items.csv", *places, *more]

    def grid(self, configs: Sequence[dict[str, Any]] | None = None) -> RecordingGrid:
        app_module._node.cache_clear()
        return RecordingGrid(client_app, configs or self.configs)

    def deploy(self, run_id: str, *more: str, grid: RecordingGrid | None = None) -> dict[str, Any]:
        texts = self.overrides(run_id, "runtime=deployment", "simulation.nodes=1", *more)
        return run(settle(compose(texts, base=None), None), texts, grid or self.grid())

    def simulate(self, run_id: str, *more: str) -> dict[str, Any]:
        texts = self.overrides(run_id, f"dataset.interactions={self.folder}/all.csv", "simulation.nodes=3", *more)
        app_module._node.cache_clear()
        return run(settle(compose(texts, base=None), None), texts, RecordingGrid(client_app, 3))

    def metrics(self, run_id: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "runs" / run_id / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def shop(rows: list[Row], tmp_path: Path) -> Shop:
    return Shop(rows, tmp_path)


def keys(grid: RecordingGrid) -> list[int]:
    found = [unpack(reply.content).arrays.get("keys") for reply in grid.received]
    return sorted(int(key) for values in found if values is not None for key in values)


def test_with_the_simulations_secret_a_deployment_is_the_simulation(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same users in files of several forms, on nodes of their own: the same model, metrics and bytes."""
    monkeypatch.setattr("client_app.homes.home.own_secret", lambda folder: simulation_secret(0))
    monkeypatch.setattr("server_app.run.own_secret", lambda folder: simulation_secret(0))
    simulated, deployed = shop.simulate("simulated"), shop.deploy("deployed")
    assert deployed["test"]["users"] == USERS
    assert deployed["test"] == pytest.approx(simulated["test"], abs=1e-6)
    for name, tensor in load_file(Path(simulated["run"]) / "checkpoints/round-000004.safetensors").items():
        if name.startswith("meter."):  # by users, whom the nodes name in another order
            continue
        other = load_file(Path(deployed["run"]) / "checkpoints/round-000004.safetensors")[name]
        torch.testing.assert_close(other, tensor, atol=1e-5, rtol=1e-5, msg=name)
    titles = [f"Film {item} of topic {int(item) % 7}" for item in shop.items]
    listed = len(item_list_packet(pack_item_list(shop.items, titles)))
    before, after = simulated["bytes_per_user"], deployed["bytes_per_user"]
    assert after["one_time"] == pytest.approx(before["one_time"] + listed)
    assert (after["up"], after["down"], after["evaluation"]) == (before["up"], before["down"], before["evaluation"])
    assert deployed["baselines"] == {}


def test_keys_and_draws_come_from_a_secret_of_the_sites_own(shop: Shop) -> None:
    grid = shop.grid()
    first = shop.deploy("first", grid=grid)
    named = keys(grid)
    assert len(set(named)) == USERS
    for site in range(SITES):
        secret = shop.folder / f"state{site}" / "secret"
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
        assert len(bytes.fromhex(secret.read_text())) == 32
    server = Path(first["run"]) / "secret"
    assert stat.S_IMODE(server.stat().st_mode) == 0o600
    assert (
        len({(shop.folder / f"state{site}" / "secret").read_text() for site in range(SITES)} | {server.read_text()})
        == 5
    )
    again = shop.grid()
    shop.deploy("again", grid=again)
    assert keys(again) == named, "under new node ids and in another run, users are known by their keys"
    shutil.rmtree(shop.folder / "state0")
    wiped = shop.grid()
    shop.deploy("wiped", grid=wiped)
    assert len(set(keys(wiped)) & set(named)) == USERS - USERS // SITES, "a wiped disk starts anew, the others do not"


def test_the_list_of_items_is_sent_once_and_the_file_is_read_once(
    shop: Shop, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = shop.grid()
    with caplog.at_level(logging.INFO, "fedrec"):
        shop.deploy("first", grid=grid)
    text = caplog.text
    assert text.count("prepared 12 users") == SITES
    assert "3 lines that could not be read" in text
    assert "2 of them: expected one JSON object" in text
    assert "1 interactions with items that are not in the server's list" in text
    assert "marker-user" not in text
    assert "nowhere" not in text

    def lists(grid: RecordingGrid) -> int:
        catalogue = json.loads(str(unpack(grid.sent[0].content).fields["setup"]))["catalogue"]
        return sum(f"frozen.{catalogue}" in unpack(message.content).arrays for message in grid.sent)

    assert lists(grid) == SITES
    caplog.clear()
    second = shop.grid()
    # The same file in another run: neither the list nor the file is needed again.
    with monkeypatch.context() as patch, caplog.at_level(logging.INFO, "fedrec"):
        patch.setattr("fedrec.data.tables.open_table", None)
        shop.deploy("second", grid=second)
    assert lists(second) == 0
    assert "prepared" not in caplog.text
    # A file that has changed is prepared anew for the next run.
    with Path(shop.configs[0]["interactions"]).open("a") as file:
        file.write("u4000,1,1\n")
    with caplog.at_level(logging.INFO, "fedrec"):
        shop.deploy("third")
    assert caplog.text.count("prepared") == 1
    assert "prepared 13 users" in caplog.text


def test_what_a_site_needs_between_rounds_is_in_its_state_dir(shop: Shop) -> None:
    """Every message is a new process, two nodes are started anew, the files have gone: the run is the same."""
    plain = shop.deploy("plain")
    grid = shop.grid()
    messages = 0

    def answer(message: Message) -> Message:
        nonlocal messages
        if message.metadata.message_type != "query.enroll":
            messages += 1
            for config in shop.configs:
                Path(config["interactions"]).unlink(missing_ok=True)
            if messages in (3, 6):  # a restart: the runtime's own memory of the node is gone
                grid._contexts[message.metadata.dst_node_id].state.clear()
        app_module._node.cache_clear()
        for path in shop.folder.glob("state*/users.sqlite"):
            close_file(path, synced=True)
        return RecordingGrid.respond(grid, message)

    grid.respond = answer  # type: ignore[method-assign]
    again = shop.deploy("again", grid=grid)
    assert again["test"] == pytest.approx(plain["test"], abs=1e-9)
    trained = [[(line["loss"], line["cold_users"]) for line in shop.metrics(run)] for run in ("plain", "again")]
    assert trained[0] == trained[1]
    assert sum(cold for _, cold in trained[1]) < sum(line["users"] for line in shop.metrics("again"))
    assert again["bytes_per_user"] == plain["bytes_per_user"]


def test_a_disk_that_is_wiped_during_a_run_starts_anew(shop: Shop) -> None:
    grid = shop.grid()
    ask = grid.respond
    trained = 0

    def answer(message: Any) -> Any:
        nonlocal trained
        trained += message.metadata.message_type == "train"
        if trained == SITES + 1:
            trained += 1
            shutil.rmtree(shop.folder / "state0")
        app_module._node.cache_clear()
        return ask(message)

    grid.respond = answer  # type: ignore[method-assign]
    summary = shop.deploy("r", "federation.max_failures=0.5", grid=grid)
    assert summary["test"]["users"] == USERS
    assert len(set(keys(grid))) == USERS + USERS // SITES, "its users came back as others"
    assert sum(line["dropped_replies"].get("users_changed", 0) for line in shop.metrics("r")) == 1


def test_a_store_that_is_damaged_between_two_rounds_is_put_aside_and_counted(shop: Shop) -> None:
    """Its users are known by the same keys, and start anew; nothing else is lost, and the round goes on."""
    grid = shop.grid()
    trained = 0

    def answer(message: Message) -> Message:
        nonlocal trained
        trained += message.metadata.message_type == "train"
        if trained == 2 * SITES + 1:
            trained += 1
            store = shop.folder / "state0" / "users.sqlite"
            store.write_bytes(store.read_bytes()[:5000] + b"no pages of a store" * 500)
        app_module._node.cache_clear()
        return RecordingGrid.respond(grid, message)

    grid.respond = answer  # type: ignore[method-assign]
    summary = shop.deploy("r", grid=grid)
    assert summary["test"]["users"] == USERS
    counted = [line["dropped_replies"] for line in shop.metrics("r")]
    assert [line.get("store_damaged", 0) for line in counted] == [0, 0, 1, 0]
    assert (shop.folder / "state0" / "users.sqlite.damaged-1").exists()
    assert len(set(keys(grid))) == USERS


def test_all_mistakes_of_a_node_are_told_at_once_and_cost_the_others_nothing(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    bad = {"interactions": "clicks.csv", "user-colum": "who", "min-rating": 3.0, "time-column": 5}
    gone = {"interactions": f"{shop.folder}/gone.csv", "state-dir": f"{shop.folder}/items.csv"}
    grid = shop.grid([*shop.configs[:2], bad, gone, {**shop.configs[3], "item-column": "what?"}])
    with caplog.at_level(logging.WARNING, "fedrec"):
        summary = shop.deploy("r", grid=grid)
    assert summary["test"]["users"] == USERS // 2
    assert shop.metrics("r")[0]["dropped_replies"] == {"misconfigured": 3}
    told = [record.message for record in caplog.records if "cannot take part" in record.message]
    of_the_server = [text for text in told if text.startswith("the reply of node ")]
    assert len(told) == 6, "each node says it in its own log too"
    for part in (
        "5 problems",
        "interactions='clicks.csv': expected an absolute path",
        "state-dir: is missing",
        "user-colum: there is no such key in a node's configuration; did you mean user-column",
        "time-column=5: expected a text",
        "min-rating: needs the column of the ratings",
    ):
        assert part in of_the_server[0]
    assert "there is no such file" in of_the_server[1]
    assert "cannot be made" in of_the_server[1]
    assert "no column of the name item-column='what?' among its 3" in of_the_server[2]


def test_a_site_never_opens_what_a_simulation_names(shop: Shop, tmp_path: Path) -> None:
    """A server could name any folder of the node's machine."""
    texts = shop.overrides("r", f"dataset.interactions={shop.folder}/all.csv", "simulation.nodes=4")
    with pytest.raises(FederationError, match="misconfigured"):
        run(settle(compose(texts, base=None), None), texts, shop.grid())
    assert not any((tmp_path / f"state{site}").exists() for site in range(SITES))


def test_a_simulated_node_has_nothing_to_bring_to_a_deployment(shop: Shop) -> None:
    with pytest.raises(FederationError, match="misconfigured"):
        shop.deploy("r", "federation.node_timeout=0.0", grid=RecordingGrid(client_app, 2))


def test_two_nodes_that_name_the_same_users_are_counted_and_the_newest_stays(shop: Shop) -> None:
    """As when a killed node comes back under a new id before its former self is given up."""
    grid = shop.grid(shop.configs[:2])
    ids = grid.get_node_ids
    grid.get_node_ids = lambda: list(ids())[:2]  # type: ignore[method-assign]
    twice = shop.grid([*shop.configs[:2], shop.configs[0]])
    every = list(twice.get_node_ids())
    calls = 0

    def connected() -> list[int]:
        nonlocal calls
        calls += 1
        return every[:2] if calls <= 3 else every

    twice.get_node_ids = connected  # type: ignore[method-assign]
    summary = shop.deploy("r", grid=twice)
    assert summary["test"]["users"] == USERS // 2
    assert sum(line["dropped_replies"].get("double_users", 0) for line in shop.metrics("r")) == 1
    trained = [message.metadata.dst_node_id for message in twice.sent if message.metadata.message_type == "train"]
    assert trained[-1] == every[2] or trained[-2] == every[2]
    assert every[0] not in trained[-2:]
    assert np.unique(keys(twice)).size == USERS // 2
