"""Items that come after the training: their vectors follow from their rows of the base table."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fedrec.config.describe import load_member
from fedrec.core import registry
from fedrec.core.rng import generator
from fedrec.core.tensors import Tensors, zeros
from peft_embeddings.model import Model
from peft_embeddings.new_items import grow, item_vectors_for_new

ITEMS, DIM = 50, 8
BASE = torch.randn(ITEMS, DIM, generator=generator(0, "base"))
LATER = torch.cat([BASE[[3, 3, 7]], torch.randn(4, DIM, generator=generator(0, "later"))])
"""The first three of them are like items that are there."""


class Trained:
    """A model somewhere in its training."""

    def __init__(self, name: str, **values: Any) -> None:
        embedding = registry.embeddings.get(name)(load_member("embedding", name, **values), ITEMS, DIM)
        backbone = registry.backbones.get("fedmf")(load_member("backbone", "fedmf"), DIM)
        self.model = Model(embedding, backbone)
        start, self.frozen, self.kept = self.model.start(BASE, zeros(backbone.shared), generator(1))
        rng = generator(2)
        self.trainable = {key: tensor + torch.randn(tensor.shape, generator=rng) for key, tensor in start.items()}

    def later(self, vectors: Tensor = LATER) -> Tensor:
        return item_vectors_for_new(self.model, self.trainable, self.frozen, self.kept, vectors)

    def tensor(self, name: str) -> Tensor:
        return self.trainable[f"embedding.{name}"]


@pytest.mark.parametrize("name", ["lora", "full"])
def test_without_training_a_new_item_is_its_base_vector(name: str) -> None:
    assert torch.equal(Trained(name).later(), LATER)


@pytest.mark.parametrize("start", ["random", "semantic"])
def test_low_rank_alone_is_the_nearest_vector_that_it_can_be(start: str) -> None:
    trained = Trained("lora", variant="C", start=start, scaling=0.5)
    b = trained.tensor("B").double()
    expected = (torch.linalg.lstsq(b.T, LATER.double().T).solution.T @ b).float()
    torch.testing.assert_close(trained.later(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("variant", ["P", "C"])
def test_a_hashed_item_reads_the_rows_of_its_number(variant: str) -> None:
    trained = Trained("hash", variant=variant, buckets=16)
    base = LATER if variant == "P" else torch.zeros_like(LATER)
    for place, vector in enumerate(trained.later()):
        buckets = [((a * (ITEMS + place) + b) % (2**31 - 1)) % 16 for a, b in trained.frozen["functions"].tolist()]
        torch.testing.assert_close(vector, base[place] + trained.tensor("rows")[buckets].mean(0))


@pytest.mark.parametrize(("variant", "start"), [("P", "zero"), ("P", "semantic"), ("C", "semantic")])
def test_a_new_item_has_the_code_of_one_that_is_like_it(variant: str, start: str) -> None:
    trained = Trained("rqvae", variant=variant, start=start, levels=2, codes=16, steps=40)
    made = trained.later()
    like = trained.model.item_vectors(trained.trainable, trained.frozen, torch.tensor([3, 3, 7]))
    assert torch.equal(made[:3], like)
    codes = grow(trained.model, trained.trainable, trained.frozen, trained.kept, LATER).frozen["codes"]
    assert torch.equal(codes[:ITEMS], trained.frozen["codes"])
    assert len({tuple(code) for code in codes[ITEMS:].tolist()}) > 2


def test_what_is_kept_is_all_that_codes_need() -> None:
    """Its tensors alone, as a checkpoint has them, give every item the code that it was given."""
    trained = Trained("rqvae", levels=2, codes=8, steps=60)
    grown = grow(trained.model, trained.trainable, trained.frozen, trained.kept, BASE)
    assert torch.equal(grown.frozen["codes"][ITEMS:], trained.frozen["codes"])
    assert all(name.startswith("coder.") for name in trained.kept)


def test_a_grown_model_is_one_like_any() -> None:
    """Its tensors fit its own specifications, and it can grow again."""
    trained = Trained("rqvae", levels=2, codes=8, steps=20)
    first = grow(trained.model, trained.trainable, trained.frozen, trained.kept, LATER[:4])
    twice = grow(*first, trained.kept, LATER[4:])
    once = grow(trained.model, trained.trainable, trained.frozen, trained.kept, LATER)
    assert twice.model.embedding.n_items == once.model.embedding.n_items == ITEMS + len(LATER)
    assert once.trainable.keys() == once.model.trainable.keys()
    assert {name: tuple(tensor.shape) for name, tensor in once.frozen.items()} == {
        name: spec.shape for name, spec in once.model.frozen.items()
    }
    both: list[tuple[Tensors, Tensors]] = [(twice.trainable, once.trainable), (twice.frozen, once.frozen)]
    assert all(torch.equal(one[name], other[name]) for one, other in both for name in other)


def test_no_new_items_are_no_change() -> None:
    assert Trained("lora").later(LATER[:0]).shape == (0, DIM)
