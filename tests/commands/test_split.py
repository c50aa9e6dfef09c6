"""A data set shared out to sites: every user once."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import cast

import pytest

from commands.split import split
from fedrec.config.compose import compose
from fedrec.config.paths import settle
from fedrec.core.errors import ConfigError, StoreError
from fedrec.data.prepare import load
from fedrec.datasets.base import DatasetConfig

SHOP = ["dataset.n_users=12", "dataset.n_items=20", "dataset.interactions_per_user=5", "dataset.topics=4"]


def users(folder: Path) -> Counter[str]:
    """At how many sites of a folder each user is."""
    found = Counter[str]()
    for path in folder.glob("site-*/interactions.csv"):
        with path.open(newline="") as file:
            found.update({row["user_id"] for row in csv.DictReader(file)})
    return found


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    """Whatever the ids and texts are, a deployment of the files has the same users, items and texts."""
    long = "word " * 30_000
    items = [(' "a', "One"), ("b,c", 'Two "2"'), ("d'|;\\", "Three"), ("\\N", "Four")]
    (tmp_path / "items.jsonl").write_text(
        "".join(json.dumps({"item_id": item, "title": title, "text": long + title}) + "\n" for item, title in items)
    )
    rows = [(user, item) for user in ("José", "::", '"', " u") for item, _ in items]
    (tmp_path / "clicks.jsonl").write_text(
        "".join(json.dumps({"user_id": user, "item_id": item}) + "\n" for user, item in rows)
    )
    table = ["dataset=table", "dataset.time_column=null", "dataset.text_columns=[text]"]
    config = compose([*table, "dataset.interactions=clicks.jsonl", "dataset.item_table=items.jsonl"], base=tmp_path)
    before = split(config, 1, tmp_path / "out")
    places = ["dataset.interactions=out/site-0/interactions.csv", "dataset.item_table=out/items.csv"]
    after = load(cast(DatasetConfig, compose([*table, *places], base=tmp_path).dataset))
    assert after.catalogue == before.catalogue
    assert after.interactions.user_ids == before.interactions.user_ids
    assert after.interactions.items.tolist() == before.interactions.items.tolist()
    assert after.report.counts == {}


def test_sites_of_an_earlier_split_do_not_stay_beside_the_new_ones(tmp_path: Path) -> None:
    config = compose(SHOP, base=tmp_path)
    split(config, 3, tmp_path / "shop")
    with pytest.raises(StoreError, match="more than 2 sites, whose users would be there twice"):
        split(config, 2, tmp_path / "shop")
    for sites in (3, 4):
        split(config, sites, tmp_path / "shop")
        assert set(users(tmp_path / "shop").values()) == {1}


def test_data_that_are_split_by_time_are_not_shared_out(tmp_path: Path) -> None:
    config = settle(compose(["dataset=ml_100k", "dataset.root=/nowhere", "dataset.split=temporal"], base=None), None)
    with pytest.raises(ConfigError, match=r"dataset\.split=temporal: the files of sites have no times"):
        split(config, 2, tmp_path)
