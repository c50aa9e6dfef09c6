"""Low-rank vectors: what they start from when they stand alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fedrec.config.compose import compose
from fedrec.config.describe import load_member
from fedrec.core.errors import ConfigError
from fedrec.core.registry import backbones, embeddings
from fedrec.core.rng import generator
from fedrec.core.tensors import Tensors
from peft_embeddings.lora import LoraEmbedding
from peft_embeddings.model import Model

ITEMS, DIM = 60, 8


def make(**values: Any) -> LoraEmbedding:
    made: LoraEmbedding = embeddings.get("lora")(load_member("embedding", "lora", **values), ITEMS, DIM)
    return made


def table(rank: int = DIM) -> Tensor:
    rng = generator(0, "base")
    return torch.randn(ITEMS, rank, generator=rng) @ torch.randn(rank, DIM, generator=rng)


def vectors(embedding: LoraEmbedding, tensors: Tensors, base: Tensor | None = None) -> Tensor:
    return embedding.embed({"A": tensors["A"].unsqueeze(-2)}, {"B": tensors["B"]}, {}, base)


@pytest.mark.parametrize("rank", [1, 4, 8])
@pytest.mark.parametrize("scaling", [1.0, 0.25])
def test_the_semantic_start_is_the_truncated_singular_value_decomposition(rank: int, scaling: float) -> None:
    base = table()
    embedding = make(variant="C", start="semantic", rank=rank, scaling=scaling)
    tensors = embedding.init(base, generator(0))
    u, s, v = torch.linalg.svd(base, full_matrices=False)
    torch.testing.assert_close(vectors(embedding, tensors), u[:, :rank] * s[:rank] @ v[:rank], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(tensors["A"].norm(dim=0), tensors["B"].norm(dim=1))  # neither outruns the other


@pytest.mark.parametrize(("known", "rank"), [(3, 5), (DIM, 12), (0, 4)])
def test_where_the_table_has_nothing_left_the_start_is_one_that_training_can_leave(known: int, rank: int) -> None:
    base = table(rank=known)
    tensors = make(variant="C", start="semantic", rank=rank).init(base, generator(0))
    torch.testing.assert_close(vectors(make(variant="C"), tensors), base, atol=1e-4, rtol=1e-3)
    assert not tensors["B"][known:].any()
    assert (tensors["A"][:, known:].std(0) > 0.05).all(), "as in variant P: a random A over a B of zero"


def test_the_variants_differ_by_the_base_alone() -> None:
    base = table()
    tensors = {"A": torch.randn(ITEMS, 4), "B": torch.randn(4, DIM)}
    for scaling in (1.0, 0.5):
        corrected = vectors(make(scaling=scaling), tensors, base)
        alone = vectors(make(variant="C", scaling=scaling), tensors)
        torch.testing.assert_close(corrected, base + alone)
        torch.testing.assert_close(alone, scaling * tensors["A"] @ tensors["B"])


def test_starts_that_a_variant_does_not_have() -> None:
    with pytest.raises(ConfigError, match=r"variant=P, lora cannot start semantic: give embedding\.start=zero"):
        compose(["embedding.start=semantic"], base=None)
    with pytest.raises(ConfigError, match=r"variant=C, lora cannot start zero: give embedding\.start=random or sem"):
        compose(["embedding.start=zero", "embedding.variant=C"], base=None)
    with pytest.raises(ConfigError, match=r"embedding\.variant=D: expected"):
        compose(["embedding.variant=D"], base=None)


@pytest.mark.parametrize("scaling", [1.0, 0.25])
def test_a_merged_base_is_the_vectors_there_were(scaling: float) -> None:
    rng = generator(1)
    model = Model(make(scaling=scaling, rank=3), backbones.get("fedmf")(load_member("backbone", "fedmf"), DIM))
    a, b = torch.randn(ITEMS, 3, generator=rng), torch.randn(3, DIM, generator=rng)
    correction = {"embedding.A": a, "embedding.B": b}
    frozen = {"base": table()}
    merged = model.merged(correction, frozen)
    assert merged.dtype == torch.float32
    by_hand = frozen["base"].double() + scaling * a.double() @ b.double()
    assert torch.equal(merged, by_hand.float()), "added up in float64 and rounded once"
    before = model.item_vectors(correction, frozen, torch.arange(ITEMS))
    torch.testing.assert_close(merged, before, atol=1e-5, rtol=1e-5)
    assert torch.equal(frozen["base"], table()), "what was given is as it was"
    assert model.merging.keys() == correction.keys()
