"""The contract of item embeddings, over every member of the family by itself, in each of its variants and starts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedrec.config.describe import load_member
from fedrec.core.registry import embeddings
from fedrec.core.rng import generator
from fedrec.testing.embedding import DIM, N_ITEMS, EmbeddingContract, frozen_of, init, perturbed, vectors
from peft_embeddings.base import ItemEmbedding


def cases() -> list[str]:
    """Every member, and of a compressed one every variant with every start that it has: `lora/C/random`."""
    found = []
    for name in embeddings.names():
        starts = getattr(load_member("embedding", name), "starts", None)
        ways = [f"/{variant}/{start}" for variant in starts for start in starts[variant]] if starts else [""]
        found += [name + way for way in ways]
    return found


COMPRESSED = [case for case in cases() if "/" in case]


def make(case: str, **values: float) -> ItemEmbedding:
    name, *way = case.split("/")
    config = load_member("embedding", name, **dict(zip(("variant", "start"), way, strict=False)), **values)
    made: ItemEmbedding = embeddings.get(name)(config, N_ITEMS, DIM)
    return made


class TestEveryEmbedding(EmbeddingContract):
    @pytest.fixture(params=cases())
    def embedding(self, request: pytest.FixtureRequest) -> ItemEmbedding:
        return make(request.param)


@pytest.fixture
def base() -> Tensor:
    return torch.randn(N_ITEMS, DIM, generator=generator(0, "base"))


@pytest.mark.parametrize("case", [case for case in cases() if make(case).uses_base])
def test_the_first_vectors_are_the_base_to_the_bit(case: str, base: Tensor) -> None:
    embedding = make(case)
    tensors = init(embedding, base)
    items = torch.arange(N_ITEMS)
    assert torch.equal(vectors(embedding, tensors, frozen_of(embedding, tensors), base, items), base)


@pytest.mark.parametrize("case", COMPRESSED)
def test_the_factor_is_before_what_is_compressed(case: str, base: Tensor) -> None:
    one, quarter = make(case), make(case, scaling=0.25)
    start, items = init(one, base), torch.arange(N_ITEMS)
    trained, frozen = perturbed(one, start, user=0), frozen_of(one, start)
    there = base if one.uses_base else torch.zeros_like(base)
    whole = vectors(one, trained, frozen, base, items) - there
    assert whole.abs().max() > 0.01
    torch.testing.assert_close(vectors(quarter, trained, frozen, base, items) - there, 0.25 * whole)


@pytest.mark.parametrize("case", [case for case in COMPRESSED if "/C/" in case and "senet" not in case])
def test_alone_the_first_vectors_are_the_same_whatever_the_factor(case: str, base: Tensor) -> None:
    items, made = torch.arange(N_ITEMS), []
    for scaling in (1.0, 0.25):
        embedding = make(case, scaling=scaling)
        tensors = init(embedding, base)
        made.append(vectors(embedding, tensors, frozen_of(embedding, tensors), base, items))
    torch.testing.assert_close(made[0], made[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("case", [case for case in cases() if case.endswith("/C/random")])
def test_alone_and_random_vectors_are_about_as_long_as_those_of_the_base(case: str) -> None:
    base = 3 * torch.randn(N_ITEMS, DIM, generator=generator(0, "base"))
    embedding = make(case)
    found = []
    for seed in range(30):
        tensors = init(embedding, base, seed)
        made = vectors(embedding, tensors, frozen_of(embedding, tensors), base, torch.arange(N_ITEMS))
        found.append(made.square().sum(1).mean())
    assert torch.stack(found).mean().sqrt() == pytest.approx(float(base.square().sum(1).mean().sqrt()), rel=0.2)


@pytest.mark.parametrize("case", [case for case in cases() if case.endswith("/C/semantic")])
def test_alone_and_semantic_vectors_are_nearer_to_the_base_than_one_vector_for_all(case: str, base: Tensor) -> None:
    embedding = make(case)
    tensors = init(embedding, base)
    made = vectors(embedding, tensors, frozen_of(embedding, tensors), base, torch.arange(N_ITEMS))
    assert (made - base).square().sum() < 0.8 * (base - base.mean(0)).square().sum()


def test_low_rank_corrections_merge_and_those_that_would_win_nothing_do_not() -> None:
    """Two corrections that share their hash functions or codes add up to one of the same kind."""
    assert [case for case in cases() if make(case).restart(generator(0)) is not None] == ["lora/P/zero"]
