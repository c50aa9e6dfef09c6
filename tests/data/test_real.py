"""The real data sets have their published sizes."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from fedrec.data.prepare import load
from fedrec.data.split import evaluated
from fedrec.data.types import Dataset


def sizes(dataset: Dataset) -> tuple[int, int, int, int]:
    """(users, catalogue, rated items, interactions)."""
    found = dataset.interactions
    assert dataset.report.after.items == len(dataset.eligible) == len(np.unique(found.items))
    assert set(dataset.report.counts) <= {"unrated_item"}
    return found.users, len(dataset.catalogue), len(dataset.eligible), len(found.items)


def test_ml_100k(real: Path, config: Any, tmp_path: Path) -> None:
    dataset = load(config("ml_100k", root=real / "ml-100k"))
    assert sizes(dataset) == (943, 1682, 1682, 100_000)
    assert evaluated(dataset.interactions, of="test").all()
    assert dataset.catalogue.sentences[0] == "Toy Story (1995). Animation, Children's, Comedy."
    with zipfile.ZipFile(tmp_path / "ml-100k.zip", "w") as archive:
        for name in ("u.data", "u.item"):
            archive.write(real / "ml-100k" / name, f"ml-100k/{name}")
    zipped = load(config("ml_100k", root=tmp_path))
    assert zipped.catalogue == dataset.catalogue
    assert np.array_equal(zipped.interactions.items, dataset.interactions.items)


def test_ml_1m_through_table(real: Path, config: Any) -> None:
    folder = real / "ml-1m"
    values = {"interactions": folder / "interactions.csv", "item_table": folder / "items.csv"}
    dataset = load(config("table", **values, items="listed"))
    assert sizes(dataset) == (6040, 3883, 3706, 1_000_209)
    assert dataset.report.counts == {"unrated_item": 177}
    assert "Miserables, Les (1995). Drama, Musical." in {
        s.replace("Misérables", "Miserables") for s in dataset.catalogue.sentences
    }
    # The file is in time order within a user: the first of user 1.
    assert dataset.catalogue.item_ids[dataset.interactions.history(0)[0]] == "3186"


def test_amazon_industrial_through_table(real: Path, config: Any) -> None:
    folder = real / "amazon-industrial"
    values = {"interactions": folder / "interactions.csv", "item_table": folder / "items.csv"}
    assert sizes(load(config("table", **values))) == (3270, 3686, 3540, 21_636)
    assert sizes(load(config("table", **values, items="rated"))) == (3270, 3540, 3540, 21_636)
