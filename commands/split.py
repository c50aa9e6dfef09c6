"""`fedrec split`: a data set shared out by user, as if it had always been in many places, to try a deployment."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

from fedrec.config.schema import RunConfig
from fedrec.core.disk import writing
from fedrec.core.errors import ConfigError, DataError, StoreError
from fedrec.core.whole_files import replaced
from fedrec.data.prepare import load
from fedrec.data.types import Dataset
from fedrec.datasets.base import DatasetConfig


def split(config: RunConfig, sites: int, folder: Path) -> Dataset:
    """Write `items.csv` and, for each site, `site-<n>/interactions.csv` with every n-th user; the data set.

    The table of items is what the server may know. The times are the places in each user's history, so that the order
    survives whatever clock the data set had. Raises ConfigError for data that are split by time, DataError if there are
    fewer users than sites, StoreError if something cannot be written, or more sites are there already.
    """
    by = getattr(config.dataset, "split", "leave_one_out")
    if by != "leave_one_out":
        raise ConfigError(
            [f"dataset.split={by}: the files of sites have no times, and a deployment holds out by user; leave it out"]
        )
    dataset = load(cast(DatasetConfig, config.dataset), lambda *_: None)
    interactions, catalogue = dataset.interactions, dataset.catalogue
    if interactions.users < sites:
        raise DataError(f"{dataset.name} has {interactions.users} users: too few for {sites} sites; give fewer sites")
    with writing(str(folder), "give another folder"):
        if (folder / f"site-{sites}").exists():
            raise StoreError(
                f"{folder} holds the files of more than {sites} sites, whose users would be there twice: remove them, "
                "or give another folder"
            )
        items = zip(catalogue.item_ids, catalogue.titles, catalogue.sentences, strict=True)
        _write(folder / "items.csv", ("item_id", "title", "text"), items)
        for site in range(sites):
            rows = (
                (interactions.user_ids[user], catalogue.item_ids[item], time)
                for user in range(site, interactions.users, sites)
                for time, item in enumerate(interactions.history(user))
            )
            _write(folder / f"site-{site}" / "interactions.csv", ("user_id", "item_id", "timestamp"), rows)
    return dataset


def _write(path: Path, names: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as started, started.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(rows)
