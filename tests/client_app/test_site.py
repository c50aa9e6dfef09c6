"""A site's configuration and its file: what is read, what is refused, and what is said of it."""

from __future__ import annotations

import logging
import os
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from client_app.homes.site import Site, is_site, site_of
from client_app.homes.site_data import Told, prepared_data, require_site
from fedrec.core.errors import ConfigError, PacketError
from fedrec.core.registry import CONF
from fedrec.data import split
from fedrec.wire.item_list import ItemList

ITEMS = ItemList(("a", "b", "c", "d"), ("A", "B", "C", "D"))
RUN, OTHER = "0123456789abcdef", "fedcba9876543210"


def site(folder: Path, text: str, name: str = "clicks.csv", **more: Any) -> Site:
    (folder / name).write_text(text)
    return Site(folder / name, folder / "state", **more)


def prepared(of: Site, run: str = RUN) -> dict[str, list[int]]:
    require_site(of, run)
    data = prepared_data(of, Told(run, "digest", 4, "{}", "secret"), lambda: ITEMS, Counter())
    return {data.user_ids[user]: data.history(user).tolist() for user in range(data.users)}


def test_the_defaults_are_those_of_a_table() -> None:
    table = yaml.safe_load((CONF / "dataset" / "table.yaml").read_text())
    defaults = {
        field.name: field.default for field in fields(Site) if field.name in table and field.name != "interactions"
    }
    assert len(defaults) == 10
    assert {name: value or None for name, value in defaults.items()} == {name: table[name] for name in defaults}


def test_which_nodes_are_sites(tmp_path: Path) -> None:
    simulated = {"partition-id": 0, "num-partitions": 2}
    own = {"interactions": str(tmp_path / "x.csv"), "state-dir": str(tmp_path)}
    assert not is_site(simulated)
    assert is_site({})
    assert is_site(own)
    assert is_site(simulated | own)
    assert site_of(simulated | own) == site_of(own) == Site(tmp_path / "x.csv", tmp_path)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, ["interactions: is missing; start the SuperNode with", "state-dir: is missing"]),
        (
            {"interactions": 5, "state-dir": True},
            ["interactions=5: expected a text", "state-dir=True: expected a text"],
        ),
        ({"interactions": "/a.xls", "state-dir": "s"}, ["cannot tell its form", "expected an absolute path"]),
        ({"state_dir": "/s"}, ["state_dir: there is no such key in a node's configuration; did you mean state-dir"]),
        ({"min-rating": "4", "user-column": ""}, ["min-rating='4': expected a number", "user-column=''"]),
        ({"policy": "here.toml"}, ["policy='here.toml': expected an absolute path"]),
    ],
)
def test_all_mistakes_of_a_configuration_are_said(config: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        site_of(config)
    text = str(caught.value)
    assert [part for part in said if part not in text] == []


def test_a_file_is_prepared_as_a_simulation_prepares_it(tmp_path: Path) -> None:
    text = "user_id,item_id,timestamp,stars\nzoe,c,3,5\nzoe,a,1,4\nzoe,a,2,5\nann,b,1,1\nzoe,d,3,3\nzoe,x,0,5\n"
    assert prepared(site(tmp_path, text)) == {"ann": [1], "zoe": [0, 2, 3]}
    rated = site(tmp_path, text, rating_column="stars", min_rating=3.5)
    assert prepared(rated, OTHER) == {"zoe": [0, 2]}


@pytest.mark.parametrize(
    ("name", "text", "more"),
    [
        ("t.inter", 'user_id:token\titem_id:token\ttimestamp:float\nann\tb\t2\nann\t"a\t1\n', {}),
        ("t.tsv", 'ann\tb\t2\nann\t"a\t1\n', {"columns": "user_id, item_id,timestamp"}),
        ("T.DAT", 'ann::b::2\nann::"a::1\n', {"columns": "user_id,item_id,timestamp", "separator": "::"}),
        ("t.csv", 'user_id,item_id,timestamp\nann,b,2\nann,"a,1\n', {"quote": ""}),
        (
            "t.csv",
            "user_id;item_id;timestamp\nann;b;2\n'ann';'\\\"a';1\n",
            {"quote": "'", "escape": "\\", "separator": ";"},
        ),
    ],
)
def test_a_site_has_every_setting_of_a_table(tmp_path: Path, name: str, text: str, more: dict[str, str]) -> None:
    own = site(tmp_path, text, name, **more)
    config = more | {"interactions": str(own.interactions), "state-dir": str(own.state_dir)}
    assert site_of(config) == own
    listed = ItemList(('"a', "b"), ("A", "B"))
    data = prepared_data(own, Told(RUN, "digest", 2, "{}", "secret"), lambda: listed, Counter())
    assert data.history(0).tolist() == [0, 1]


def test_settings_of_a_sites_file_are_told_by_its_keys(tmp_path: Path) -> None:
    config = {"separator": "\n", "quote": "''", "encoding": "x", "columns": "a,a", "state-dir": "s"}
    with pytest.raises(ConfigError) as caught:
        site_of(config)
    told = str(caught.value)
    for part in (
        "separator='\\n'",
        "quote=\"''\"",
        "encoding='x'",
        "columns: a is there twice",
        "interactions: is miss",
    ):
        assert part in told
    assert "dataset." not in told
    own = site(tmp_path, "user_id,item_id,timestamp\n")
    own.interactions.write_bytes("user_id,item_id,timestamp\nJosé,b,1\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="name its encoding, as in encoding='latin-1'"):
        prepared(own)


def test_a_folder_of_parts_is_a_sites_table_too(tmp_path: Path) -> None:
    folder = tmp_path / "clicks"
    folder.mkdir()
    (folder / "_SUCCESS").touch()
    (folder / "part-0.csv").write_text("user_id,item_id,timestamp\nann,b,2\n")
    config = {"interactions": str(folder), "state-dir": str(tmp_path / "state")}
    own = site_of(config)
    assert prepared(own) == {"ann": [1]}
    (folder / "part-1.csv").write_text("user_id,item_id,timestamp\nann,a,1\n")
    assert prepared(own, OTHER) == {"ann": [0, 1]}, "the next run sees that a part has come"
    (folder / "part-2.csv").write_text("zelda,b,1\n")
    with pytest.raises(ConfigError, match="the first line looks like data") as caught:
        prepared(own, "0" * 16)
    assert "zelda" not in str(caught.value)
    (folder / "part-2.csv").write_text("zelda,b,soon\n")
    with pytest.raises(ConfigError) as caught:
        prepared(own, "0" * 16)
    assert "zelda" not in str(caught.value)


def test_damage_of_a_sites_file_is_told(tmp_path: Path) -> None:
    own = site(tmp_path, "", "t.csv.gz")
    own.interactions.write_bytes(b"\x1f\x8b no")
    with pytest.raises(ConfigError, match=r"t.csv.gz is not a sound gzip file"):
        prepared(own)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ConfigError, match="a folder without a part of a table"):
        prepared(Site(empty, tmp_path / "state"))


def test_a_run_keeps_its_data_and_the_next_looks_at_the_file_again(tmp_path: Path) -> None:
    first = site(tmp_path, "user_id,item_id,timestamp\nann,b,1\n")
    assert prepared(first) == {"ann": [1]}
    site(tmp_path, "user_id,item_id,timestamp\nann,b,1\nann,c,2\n")
    os.utime(first.interactions, ns=(1, 1))
    assert prepared(first) == {"ann": [1]}
    assert prepared(first, OTHER) == {"ann": [1, 2]}
    assert prepared(first) == {"ann": [1]}
    first.interactions.unlink()
    assert prepared(first, OTHER) == {"ann": [1, 2]}
    with pytest.raises(ConfigError, match="there is no such file on this machine"):
        prepared(first, "0" * 16)


def test_damage_of_what_was_prepared_is_mended_from_the_file(tmp_path: Path) -> None:
    own = site(tmp_path, "user_id,item_id,timestamp\nann,b,1\nann,c,2\n")
    assert prepared(own) == {"ann": [1, 2]}
    (tmp_path / "state" / "prepared" / f"{RUN}.json").write_text("{")
    assert prepared(own) == {"ann": [1, 2]}
    column = next((tmp_path / "state" / "interactions").rglob("items.npy"))
    column.write_bytes(column.read_bytes()[:-3])
    from fedrec.data.store import open_store

    open_store.cache_clear()
    assert prepared(own) == {"ann": [1, 2]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("zelda,b,1\n", "the first line looks like data and not like the names of columns. If the file has no header"),
        (
            "zelda,b,never\n",
            "has no column of the name user-column='user_id', item-column='item_id', time-column=",
        ),
        ("zelda;b;1\n", "it has one column, and its first line holds ';': separator=';'?"),
        ("zelda,zelda,1\n", "two columns have the same name, among columns [1, 2]"),
        ("user_id,item_id,timestamp\n", "has no interaction that can be used, of 0 read"),
        ("user_id,item_id,timestamp\nzelda,nowhere,1\n", "of 1 read: 1 interactions with items that are not in the"),
        ("user_id,item_id,timestamp\nzelda,b,soon\n", "of 1 read: 1 lines that could not be read"),
    ],
)
def test_what_cannot_be_used_is_said_without_anybodys_data(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        prepared(site(tmp_path, text))
    assert said in str(caught.value)
    assert "zelda" not in str(caught.value)
    assert "nowhere" not in str(caught.value)


def test_a_log_has_totals_and_nobody_in_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "user_id,item_id,timestamp\nzelda,b,1\nzelda,b,2\nmallory\neve,nowhere,1\nzelda,c,soon\n,b,3\n"
    with caplog.at_level(logging.DEBUG):
        assert prepared(site(tmp_path, text)) == {"zelda": [1]}
    said = caplog.text
    for part in ("prepared 1 users with 1 interactions", "3 lines that could not be read", "1 repeated interactions"):
        assert part in said
    for part in ("mallory", "zelda", "eve", "nowhere", "soon"):
        assert part not in said


def test_a_run_of_a_hostile_name_writes_nothing(tmp_path: Path) -> None:
    own = site(tmp_path, "user_id,item_id,timestamp\nann,b,1\n")
    for run in ("../../evil", "", "0" * 15, "0" * 16 + "\n", "A" * 16):
        with pytest.raises(PacketError, match="a run's key is 16 hexadecimal digits"):
            prepared(own, run)
    assert not own.state_dir.exists()


def test_a_histories_split_is_that_of_the_simulation(tmp_path: Path) -> None:
    own = site(tmp_path, "user_id,item_id,timestamp\n" + "".join(f"ann,{item},{n}\n" for n, item in enumerate("dbca")))
    require_site(own, RUN)
    data = prepared_data(own, Told(RUN, "digest", 4, "{}", "secret"), lambda: ITEMS, Counter())
    assert split.histories(data, "train").items.tolist() == [3, 1]
    assert split.targets(data, "validation").tolist() == [2]
    assert split.targets(data, "test").tolist() == [0]
