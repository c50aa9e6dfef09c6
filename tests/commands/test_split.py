"""A data set shared out to sites: every user once."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from commands.split import split
from fedrec.config.compose import compose
from fedrec.core.errors import StoreError

SHOP = ["dataset.n_users=12", "dataset.n_items=20", "dataset.interactions_per_user=5", "dataset.topics=4"]


def users(folder: Path) -> Counter[str]:
    """At how many sites of a folder each user is."""
    found = Counter[str]()
    for path in folder.glob("site-*/interactions.csv"):
        with path.open(newline="") as file:
            found.update({row["user_id"] for row in csv.DictReader(file)})
    return found


def test_sites_of_an_earlier_split_do_not_stay_beside_the_new_ones(tmp_path: Path) -> None:
    config = compose(SHOP, base=tmp_path)
    split(config, 3, tmp_path / "shop")
    with pytest.raises(StoreError, match="more than 2 sites, whose users would be there twice"):
        split(config, 2, tmp_path / "shop")
    for sites in (3, 4):
        split(config, sites, tmp_path / "shop")
        assert set(users(tmp_path / "shop").values()) == {1}
