"""What is damaged, lost or changed at a site is noticed, said in its log, and counted once in the server's metrics."""

from __future__ import annotations

import json
import logging
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from client_app.answers import app as app_module
from client_app.answers import node as node_module
from client_app.answers.app import app as client_app
from client_app.stores import frozen
from client_app.stores.pieces import close_file
from commands.local_grid import LocalGrid
from commands.recommend import recommend
from fedrec.config.compose import compose
from fedrec.config.paths import settle
from fedrec.core.errors import FederationError, FedrecError
from fedrec.data.store import open_store
from server_app.run import run

SITES, USERS, ITEMS, ROUNDS = 2, 24, 30, 5
Meddle = Callable[[Path], Any]


class Shop:
    """Two sites, of which the first is meddled with; a restart of its process goes with every message."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state = folder, folder / "state0"
        names = "".join(f"i{item},Item {item}\n" for item in range(ITEMS))
        (folder / "items.csv").write_text("item_id,title\n" + names)
        rng = np.random.default_rng(0)
        for site in range(SITES):
            lines = [
                f"u{user},i{item},{time}"
                for user in range(site, USERS, SITES)
                for time, item in enumerate(rng.permutation(ITEMS)[:6].tolist())
            ]
            (folder / f"site{site}.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(lines) + "\n")
        self.configs = [
            {"interactions": str(folder / f"site{site}.csv"), "state-dir": str(folder / f"state{site}")}
            for site in range(SITES)
        ]

    def forget(self) -> None:
        """What a new process would not know."""
        app_module._node.cache_clear()
        open_store.cache_clear()
        frozen._load.cache_clear()
        frozen.resident.cache_clear()
        node_module._sampler.cache_clear()
        for path in self.folder.glob("state*/users.sqlite"):
            close_file(path, synced=True)

    def deploy(
        self, run_id: str, *more: str, meddle: Meddle | None = None, **more_meddling: Meddle
    ) -> list[dict[str, Any]]:
        """The records of the rounds of a run; `meddle` is called before the first site trains in round 3.

        And so is what is given as `round_<n>` in round n.
        """
        outer = self
        left = {int(name.removeprefix("round_")): work for name, work in more_meddling.items()}
        left |= {3: meddle} if meddle else {}

        class Meddled(LocalGrid):
            def answer(self, message: Message) -> Message:
                outer.forget()
                first = message.metadata.dst_node_id == min(self.get_node_ids())
                fields = message.content.config_records["fields"]
                if first and fields.get("round") in left:
                    left.pop(fields["round"])(outer.state)
                return super().answer(message)

        texts = [
            "runtime=deployment",
            "dataset=table",
            f"dataset.item_table={self.folder}/items.csv",
            "base_table.start=random",
            "base_table.dim=4",
            "embedding.rank=2",
            f"strategy.rounds={ROUNDS}",
            "strategy.warmup_rounds=2",
            "federation.fraction=1.0",
            "evaluation.every=0",
            "checkpoint_every=1",
            "simulation.nodes=1",
            f"runs_dir={self.folder}/runs",
            f"cache_dir={self.folder}/cache",
            f"run_id={run_id}",
            *more,
        ]
        if any(text.startswith("resume=") for text in more):
            texts = [f"runs_dir={self.folder}/runs", *more]
        self.forget()
        run(settle(compose(texts, base=None), None), texts, Meddled(client_app, self.configs))
        assert not left
        lines = (self.folder / "runs" / run_id / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def counted(records: list[dict[str, Any]]) -> Counter[str]:
    return sum((Counter(record["dropped_replies"]) for record in records), Counter())


def flip(path: Path, at: int = -1, bit: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= bit
    path.write_bytes(content)


@pytest.mark.parametrize("column", ["items", "offsets", "user_ids", "user_id_offsets"])
def test_a_bit_that_has_turned_in_prepared_data_is_mended_from_the_sites_own_file(
    shop: Shop, column: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The last byte of `items` is of a row that there is: without a look at all of it, users train on other items."""
    flip_at = -4 if column == "items" else -8 if column.endswith("offsets") else -1
    with caplog.at_level(logging.ERROR, "fedrec"):
        found = shop.deploy(
            "r", meddle=lambda state: flip(next((state / "interactions").rglob(f"{column}.npy")), flip_at)
        )
    assert counted(found) == {"data_damaged": 1}
    assert "This site's data is prepared anew from" in caplog.text
    assert not counted(shop.deploy("other"))


def test_with_mended_data_the_run_is_the_one_that_was_not_damaged(shop: Shop, tmp_path: Path) -> None:
    secrets = {}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        of = Shop(tmp_path / name)
        for site in range(SITES):
            state = of.folder / f"state{site}"
            state.mkdir()
            (state / "secret").write_text(f"{site + 1:064x}")
            (state / "secret").chmod(0o600)
        (of.folder / "runs/r").mkdir(parents=True)
        (of.folder / "runs/r/secret").write_text("7" * 64)
        (of.folder / "runs/r/secret").chmod(0o600)
        meddle = (lambda state: flip(next((state / "interactions").rglob("items.npy")), -4)) if name == "b" else None
        secrets[name] = [record["loss"] for record in of.deploy("r", meddle=meddle)]
    assert secrets["a"] == secrets["b"]


def test_prepared_data_that_cannot_be_mended_is_said(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    def meddle(state: Path) -> None:
        flip(next((state / "interactions").rglob("items.npy")))
        Path(shop.configs[0]["interactions"]).unlink()

    with caplog.at_level(logging.WARNING, "fedrec"):
        found = shop.deploy("r", meddle=meddle)
    assert counted(found)["failed"] >= 1
    assert "the prepared data of this run is damaged" in caplog.text
    assert "there is no such file on this machine" in caplog.text


def test_a_damaged_note_of_the_run_is_written_again(shop: Shop) -> None:
    found = shop.deploy("r", meddle=lambda state: flip(next((state / "prepared").glob("*.json")), 20))
    assert counted(found) == {"data_damaged": 1}


def _empty(state: Path) -> None:
    with sqlite3.connect(state / "users.sqlite") as file:
        file.execute("DELETE FROM piece")


def _another(state: Path) -> None:
    shutil.copyfile(state.with_name("state1") / "users.sqlite", state / "users.sqlite")


STORES: dict[str, Meddle] = {
    "deleted": lambda state: (state / "users.sqlite").unlink(),
    "of no bytes": lambda state: (state / "users.sqlite").write_bytes(b""),
    "without a row": _empty,
    "of another state-dir": _another,
}


@pytest.mark.parametrize("case", STORES)
def test_a_store_of_private_tensors_that_has_gone_is_counted(
    shop: Shop, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "fedrec"):
        found = shop.deploy("r", meddle=STORES[case])
    assert counted(found) == {"store_lost": 1}
    assert "store_lost" in found[2]["dropped_replies"], "in the round in which it was found"
    assert found[2]["cold_users"] == USERS // SITES
    assert "users who are not in it start anew" in caplog.text
    assert [record["cold_users"] for record in found[3:]] == [0, 0]


def test_an_older_copy_of_the_store_is_counted(shop: Shop) -> None:
    found = shop.deploy(
        "r",
        round_3=lambda state: shutil.copyfile(state / "users.sqlite", state / "copy"),
        round_5=lambda state: shutil.copyfile(state / "copy", state / "users.sqlite"),
    )
    assert counted(found) == {"store_lost": 1}
    assert "store_lost" in found[4]["dropped_replies"]
    assert found[4]["cold_users"] == 0, "the users go on with what they had two rounds before"


def test_a_store_that_is_damaged_when_a_site_joins_is_counted_once(shop: Shop) -> None:
    shop.deploy("first")
    store = shop.state / "users.sqlite"
    store.write_bytes(store.read_bytes()[:5000] + b"no pages of a store" * 500)
    found = shop.deploy("second")
    assert counted(found) == {"store_damaged": 1}
    assert "store_damaged" in found[0]["dropped_replies"]
    assert (shop.state / "users.sqlite.damaged-1").exists()


def test_damage_is_counted_also_if_the_site_then_asks_for_something(shop: Shop) -> None:
    """The first answer names the list of items as missing, and damage that was found on the way."""
    shop.deploy("first")
    store = shop.state / "users.sqlite"
    store.write_bytes(store.read_bytes()[:5000] + b"no pages of a store" * 500)
    for path in (shop.state / "frozen").iterdir():
        path.unlink()
    shutil.rmtree(shop.state / "prepared")
    assert counted(shop.deploy("second"))["store_damaged"] == 1


@pytest.mark.parametrize("what", ["another", "none"])
def test_another_secret_is_said_and_counted(shop: Shop, what: str, caplog: pytest.LogCaptureFixture) -> None:
    def meddle(state: Path) -> None:
        (state / "secret").unlink()
        if what == "another":
            (state / "secret").write_text("12" * 32)
            (state / "secret").chmod(0o600)

    with caplog.at_level(logging.ERROR, "fedrec"):
        found = shop.deploy("r", "federation.max_failures=0.5", meddle=meddle)
    assert counted(found)["secret_changed"] == 1
    assert "its users are known by other keys, and start anew" in caplog.text


def test_damage_of_what_was_sent_once_is_said_counted_and_mended(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    def meddle(state: Path) -> None:
        for path in (state / "frozen").iterdir():
            flip(path)

    with caplog.at_level(logging.ERROR, "fedrec"):
        found = shop.deploy("r", meddle=meddle)
    assert counted(found)["frozen_damaged"] == 1
    assert counted(found).keys() == {"frozen_damaged"}
    assert "it is asked for again" in caplog.text


def test_a_run_that_goes_on_under_a_key_that_a_site_does_not_know_is_counted(shop: Shop) -> None:
    with pytest.raises((RuntimeError, FederationError, FedrecError)):
        shop.deploy("r", meddle=lambda state: (_ for _ in ()).throw(KilledError()))
    setup = shop.folder / "runs/r/setup.json"
    told = json.loads(setup.read_text())
    setup.write_text(json.dumps({**told, "run_key": "0123456789abcdef"}))
    found = shop.deploy("r", "resume=r")
    assert counted(found)["run_unknown"] == SITES


class KilledError(RuntimeError):
    """Ends a run in the middle, as a kill does."""


def test_a_simulations_store_that_has_gone_is_counted(tmp_path: Path) -> None:
    def simulate(*more: str, kill: bool) -> list[dict[str, Any]]:
        class Killed(LocalGrid):
            def push_messages(self, messages: Any) -> Any:
                messages = list(messages)
                rounds = [message.content.config_records["fields"].get("round") for message in messages]
                if kill and 4 in rounds:
                    raise KilledError
                return super().push_messages(messages)

        texts = [f"runs_dir={tmp_path}/runs", f"cache_dir={tmp_path}/cache", *more]
        app_module._node.cache_clear()
        run(settle(compose(texts, base=None), None), texts, Killed(client_app, 2))
        lines = (tmp_path / "runs/r/metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    small = ["dataset.n_users=30", "dataset.n_items=40", "base_table.dim=4", "embedding.rank=2", "strategy.rounds=5"]
    small += ["strategy.warmup_rounds=1", "federation.fraction=1.0", "checkpoint_every=1", "run_id=r"]
    small += ["evaluation.every=0", "evaluation.baselines=false"]
    with pytest.raises(KilledError):
        simulate(*small, kill=True)
    store = tmp_path / "runs/r/state/users.sqlite"
    close_file(store, synced=False)
    store.unlink()
    assert counted(simulate("resume=r", kill=False)) == {"store_lost": 1}


def test_a_kept_model_that_is_not_what_was_kept_is_not_recommended_from(shop: Shop) -> None:
    """A bit of its first line, which says of which run and round it is: no packet's checksum covers that."""
    shop.deploy("r")
    (path,) = (shop.state / "models").iterdir()
    place = path.read_bytes().index(b'"seed\\":0') + len(b'"seed\\":')
    flip(path, place, 1)
    shop.forget()
    with pytest.raises(FedrecError, match="it is not what was written"):
        recommend(None, str(shop.state), "u0", None, 3)


def test_a_list_of_eligible_items_that_is_damaged_is_said(shop: Shop) -> None:
    shop.deploy("r")
    setup = json.loads(next((shop.state / "models").iterdir()).read_bytes().split(b"\n")[0])["setup"]
    flip(shop.state / "frozen" / f"{json.loads(setup)['eligible']}.safetensors")
    shop.forget()
    with pytest.raises(FedrecError, match="the list of items that may be recommended"):
        recommend(None, str(shop.state), "u0", None, 3)
