"""One trained number an item over a frozen table: the bias of its scores, where a backbone takes it for one."""

from __future__ import annotations

from typing import Any

import torch

from fedrec.backbones.base import ScoreContext
from fedrec.backbones.history import PlainHistory
from fedrec.config.describe import load_member
from fedrec.core.registry import backbones, embeddings
from fedrec.core.rng import generator
from peft_embeddings.base import ItemEmbedding
from peft_embeddings.model import Model

ITEMS, DIM = 20, 5


def made() -> ItemEmbedding:
    embedding: ItemEmbedding = embeddings.get("bias")(load_member("embedding", "bias", scaling=3.0), ITEMS, DIM)
    return embedding


def test_it_is_added_to_the_scores_of_its_item_and_to_nothing_else() -> None:
    backbone: Any = backbones.get("recency")(load_member("backbone", "recency", item_bias=True), DIM)
    model = Model(made(), backbone)
    base = torch.randn(ITEMS, DIM, generator=generator(0, "base"))
    shared = backbone.init_shared(generator(0, "shared"))
    trainable, frozen = model.init(base, shared, generator(0, "start"))
    bias = torch.randn(ITEMS, 1, generator=generator(1, "bias"))

    def scores(trained: dict[str, torch.Tensor]) -> torch.Tensor:
        every = model.item_vectors(trained, frozen, torch.arange(ITEMS))
        user = model.user(trained, frozen, {}, PlainHistory(torch.tensor([3, 7]), every[[3, 7]]))
        return backbone.score(model.shared(trained), user, every, ScoreContext(training=False))

    before = scores(trainable)
    after = scores(trainable | {"embedding.bias": bias})
    torch.testing.assert_close(after - before, 3 * bias[:, 0])


def test_nothing_else_of_an_item_is_sent() -> None:
    assert {name: entry.shape for name, entry in made().tables.items()} == {"bias": (ITEMS, 1)}
    assert not made().dense
    assert made().uses_base
