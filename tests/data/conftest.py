"""Fixtures of the data tests: configurations from the shipped yaml files, raw columns by hand, the real data."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import TypeAdapter

from fedrec.core.registry import CONF, datasets
from fedrec.data.types import Dataset, Interactions
from fedrec.datasets.base import DatasetConfig, IdColumn, RawData, RawItem

Config = Callable[..., DatasetConfig]
Histories = Callable[[Dataset], dict[str, list[str]]]
Raw = Callable[..., RawData]


@pytest.fixture(scope="session")
def config() -> Config:
    """Configuration of a data set: the values of its yaml, and what a test changes."""

    def make(name: str, **changes: Any) -> DatasetConfig:
        values = yaml.safe_load((CONF / "dataset" / f"{name}.yaml").read_text()) | changes
        made = TypeAdapter(datasets.get(name).config_class).validate_json(json.dumps(values, default=os.fspath))
        assert isinstance(made, DatasetConfig)
        return made

    return make


@pytest.fixture(scope="session")
def histories() -> Histories:
    """Every user's items by name, oldest first."""

    def named(dataset: Dataset) -> dict[str, list[str]]:
        ids, found = dataset.catalogue.item_ids, dataset.interactions
        return {user: [ids[row] for row in found.history(n).tolist()] for n, user in enumerate(found.user_ids)}

    return named


@pytest.fixture(scope="session")
def raw() -> Raw:
    """Raw columns from (user, item[, time[, rating]]) rows."""

    def column(values: Sequence[str]) -> IdColumn:
        labels = list(dict.fromkeys(values))
        return IdColumn(np.array([labels.index(value) for value in values], dtype=np.int32), labels)

    def make(rows: Sequence[Sequence[Any]], listed: Sequence[str] | None = None) -> RawData:
        columns = list(zip(*rows, strict=True)) if rows else [(), ()]
        return RawData(
            users=column(columns[0]),
            items=column(columns[1]),
            times=np.array(columns[2]) if len(columns) > 2 else None,
            ratings=np.array(columns[3], dtype=np.float64) if len(columns) > 3 else None,
            listed=None
            if listed is None
            else tuple(RawItem(item, f"title of {item}", f"text of {item}") for item in listed),
        )

    return make


@pytest.fixture(scope="session")
def interactions() -> Callable[[Sequence[Sequence[int]]], Interactions]:
    """Interactions from the users' histories."""

    def make(histories: Sequence[Sequence[int]]) -> Interactions:
        offsets = np.concatenate(([0], np.cumsum([len(history) for history in histories]))).astype(np.int64)
        items = np.array([item for history in histories for item in history], dtype=np.int32)
        return Interactions([f"user {n}" for n in range(len(histories))], offsets, items)

    return make
