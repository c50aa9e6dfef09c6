"""Scores looked up in products with the whole table, and what users give formed a few users at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from client_app.homes.users import Cohort
from client_app.training.contexts import whole
from client_app.training.engine import GlobalModel
from client_app.training.products import _PRICE, OneStep, products_pay
from fedrec.config.describe import load_member
from fedrec.core import registry
from fedrec.core.rng import generator
from fedrec.optim.base import Recipe
from peft_embeddings.model import Model

DIM = 6
LENGTHS = np.array([7, 1, 19, 30, 2])
NEGATIVES = 9


def made(embedding: str, backbone: str, n_items: int) -> GlobalModel:
    """A model in float64, away from where half of its gradients are zero."""
    scoring = registry.backbones.get(backbone)(load_member("backbone", backbone), DIM)
    model, rng = Model.of(load_member("embedding", embedding), scoring, n_items), generator(3, "test")
    trainable, frozen = model.init(torch.randn(n_items, DIM, generator=rng), scoring.init_shared(rng), rng)
    moved = {name: tensor.double() + 0.1 for name, tensor in trainable.items()}
    return GlobalModel(model, moved, {n: t.double() if t.is_floating_point() else t for n, t in frozen.items()})


def pays(model: GlobalModel) -> bool:
    """Whether five users with shared negatives multiply themselves with the whole table."""
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)])
    cohort = Cohort(np.arange(5, dtype=np.uint64), offsets, np.zeros(offsets[-1], dtype=np.int64))
    config = load_member("optim", "fast", negatives=NEGATIVES)
    recipe: Recipe = registry.optims.get("fast")(config, model.model.backbone.advice)
    private = model.model.backbone.init_private(1, cohort.keys)
    return products_pay(model.model, recipe, whole(cohort), private)


def test_a_large_catalogue_is_gathered_and_a_small_one_multiplied() -> None:
    limit = (LENGTHS.sum() + NEGATIVES * len(LENGTHS)) * DIM // (_PRICE * len(LENGTHS))
    assert pays(made("lora", "fedmf", limit))
    assert not pays(made("lora", "fedmf", limit + 1))


@pytest.mark.parametrize("name", ["fedncf", "pfedrec", "fedpergnn", "sasrec"])
def test_scores_that_are_no_products_are_worked_out_one_by_one(name: str) -> None:
    assert not pays(made("lora", name, 40))


@pytest.mark.parametrize("embedding", ["full", "hash"])
def test_everybody_is_in_one_part_and_a_part_is_no_larger_than_it_need_be(
    embedding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client_app.training.products._NUMBERS_AT_ONCE", 3 * DIM)
    model = made(embedding, "fedmf", 40)
    rng = np.random.default_rng(0)
    users, read = torch.from_numpy(rng.normal(size=(6, DIM))), rng.random((6, 40)) < 0.1
    read[3] = False  # whose scores have no gradient
    coefficients = torch.from_numpy(rng.normal(size=(6, 40)) * read)
    step = OneStep(model, {"user": users}, coefficients.clone(), 0.5)
    parts = list(step.parts(5))
    assert sorted(np.concatenate(parts).tolist()) == [0, 1, 2, 3, 4]
    for part in parts:
        assert len(part) == 1 or len(part) * int(read[part].sum(1).max()) <= 3
    for user, table in _tables(model, step, parts):
        rows = model.model.embedding.rows(torch.arange(40), model.frozen)
        ((name, places),) = ((name, rows[name]) for name in model.model.embedding.tables)
        expected = torch.zeros(model.model.embedding.tables[name].shape, dtype=torch.float64)
        for item in range(40):
            for place in places[item]:  # the vector is the mean of its rows, of which there is one in `full`
                share = -0.5 * coefficients[user, item] / len(places[item])
                expected[place] += share * users[user]
        base = model.model.embedding.uses_base
        scale = float(model.model.embedding.config.scaling) if base else 1.0
        torch.testing.assert_close(table, scale * expected)


def _tables(model: GlobalModel, step: OneStep, parts: list[Any]) -> list[tuple[int, torch.Tensor]]:
    """Each user's change of the one table, whole; every row of it in one place."""
    found = []
    for part in parts:
        rows, dense = step.of(part)
        assert not dense
        ((name, blocks),) = rows.items()
        for place, user in enumerate(part.tolist()):
            table = torch.zeros(model.model.trainable[name].shape, dtype=torch.float64)
            for block in blocks:
                mine = block.owner == place
                touched = block.rows[mine][block.values[mine].abs().amax(2) != 0]
                assert len(torch.unique(touched)) == len(touched)
                table.index_add_(0, block.rows[mine].flatten(), block.values[mine].flatten(0, 1))
            found.append((user, table))
    return found
