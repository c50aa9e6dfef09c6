"""An item that nobody could train on: from its text and the files of a finished run to users who like it."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from safetensors.torch import load_file

from client_app.stores.store import PrivateStore
from fedrec.config.describe import from_dict, load_member
from fedrec.core import registry
from fedrec.core.keys import opaque_keys, simulation_secret
from fedrec.core.tensors import Tensors, text_digest
from fedrec.data.prepare import load
from fedrec.data.types import Dataset
from fedrec.datasets.base import DatasetConfig
from peft_embeddings.model import Model
from peft_embeddings.new_items import item_vectors_for_new
from peft_embeddings.text_map import TextMap

Federate = Callable[..., Any]

DIM, USERS, ITEMS, LATER = 8, 150, 120, 12
"""The last items of the shop come later."""


@pytest.fixture(scope="module")
def shop() -> Dataset:
    config: Any = load_member(
        "dataset", "synthetic", n_users=USERS, n_items=ITEMS, interactions_per_user=15.0, topics=4, styles=1
    )
    assert isinstance(config, DatasetConfig)
    return load(config, lambda *_: None)


@pytest.fixture
def tables(shop: Dataset, tmp_path: Path) -> list[str]:
    """The shop before the later items came, as tables; overrides that read them."""
    with (tmp_path / "items.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["item_id", "text"])
        writer.writerows(zip(shop.catalogue.item_ids[:-LATER], shop.catalogue.sentences[:-LATER], strict=True))
    with (tmp_path / "clicks.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["user_id", "item_id"])
        for user, user_id in enumerate(shop.interactions.user_ids):
            earlier = [item for item in shop.interactions.history(user) if item < ITEMS - LATER]
            writer.writerows([user_id, shop.catalogue.item_ids[item]] for item in earlier)
    return [
        "dataset=table",
        f"dataset.interactions={tmp_path}/clicks.csv",
        f"dataset.item_table={tmp_path}/items.csv",
        "dataset.time_column=null",
        "dataset.title_column=item_id",
        "dataset.text_columns=[text]",
    ]


def liked(shop: Dataset) -> NDArray[np.bool_]:
    """Who has which later item in the history that no one has seen: bool [users, later]."""
    found = np.zeros((USERS, LATER), dtype=np.bool_)
    for user in range(USERS):
        later = [item - (ITEMS - LATER) for item in shop.interactions.history(user) if item >= ITEMS - LATER]
        found[user, later] = True
    return found


def of(tensors: Tensors, kind: str) -> Tensors:
    return {name.removeprefix(kind): tensor for name, tensor in tensors.items() if name.startswith(kind)}


@pytest.mark.parametrize(
    "embedding",
    [
        ["embedding=lora"],
        ["embedding=rqvae", "embedding.levels=2", "embedding.codes=8", "embedding.steps=40"],
        ["embedding=rqvae", "embedding.levels=2", "embedding.codes=8", "embedding.variant=C"],
        ["embedding=lora", "embedding.variant=C", "embedding.start=semantic"],
        ["embedding=hash", "embedding.buckets=64"],
    ],
    ids=lambda texts: " ".join(text.partition(".")[2] or text for text in texts),
)
def test_later_items_are_recommended_to_those_who_like_them(
    federate: Federate, shop: Dataset, tables: list[str], embedding: list[str]
) -> None:
    outcome = federate(
        *tables,
        *embedding,
        "strategy.rounds=30",
        "strategy.warmup_rounds=5",
        "federation.fraction=0.5",
        "optim.lr=0.05",
        "evaluation.every=0",
        "evaluation.baselines=false",
    )
    # From here on the run's folder is all that there is.
    config = from_dict(yaml.safe_load((outcome.folder / "config.yaml").read_text()))
    checkpoint = load_file(outcome.folder / "checkpoints/round-000030.safetensors")
    made = registry.embeddings.get(config.embedding.name)(config.embedding, ITEMS - LATER, DIM)
    backbone = registry.backbones.get(config.backbone.name)(config.backbone, DIM)
    base = TextMap.load(outcome.folder).vectors(shop.catalogue.sentences[-LATER:])
    vectors = item_vectors_for_new(
        Model(made, backbone), *(of(checkpoint, kind) for kind in ("trainable.", "frozen.", "kept.")), base
    )
    if embedding == ["embedding=lora"]:
        assert torch.equal(vectors, base)
    keys = opaque_keys(simulation_secret(config.seed), shop.interactions.user_ids)
    store = PrivateStore(outcome.folder / "state", text_digest("r"), backbone.private)
    private, found = store.load(keys, before=31)
    assert found.mean() > 0.9
    scores = (private["user"] @ vectors.T).numpy()[found]
    likes = liked(shop)[found]
    # The probability that an item goes to one who likes it rather than to one who does not.
    above = [
        (scores[likes[:, item], item][:, None] > scores[~likes[:, item], item][None]).mean()
        for item in range(LATER)
        if likes[:, item].any()
    ]
    assert np.mean(above) > 0.6, f"{np.mean(above):.2f}"
