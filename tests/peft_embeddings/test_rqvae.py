"""Semantic codes: sums of codebook rows, small codes that mean something, and starts that train alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fedrec.config.compose import compose
from fedrec.config.describe import load_member
from fedrec.core.errors import ConfigError
from fedrec.core.registry import embeddings
from fedrec.core.rng import generator
from fedrec.core.tensors import Tensors
from peft_embeddings.rqvae import RqvaeEmbedding

ITEMS, DIM = 200, 8
QUICK = {"levels": 3, "codes": 16, "hidden": [16], "steps": 60}


def make(n_items: int = ITEMS, dim: int = DIM, **values: Any) -> RqvaeEmbedding:
    config = load_member("embedding", "rqvae", **{**QUICK, **values})
    made: RqvaeEmbedding = embeddings.get("rqvae")(config, n_items, dim)
    return made


def kinds(items: int = ITEMS) -> tuple[Tensor, Tensor]:
    """Item vectors of ten kinds, and the kind of each."""
    centres = torch.randn(10, DIM, generator=generator(0, "kinds"))
    kind = torch.arange(items) % 10
    return centres[kind] + 0.1 * torch.randn(items, DIM, generator=generator(0, "items")), kind


def start(embedding: RqvaeEmbedding, base: Tensor | None = None, seed: int = 0) -> Tensors:
    return embedding.init(kinds(embedding.n_items)[0] if base is None else base, generator(seed, "init"))


def test_a_vector_is_the_sum_of_its_codes_rows() -> None:
    embedding = make(variant="C")
    tensors = start(embedding)
    items = torch.tensor([[0, 7], [199, 7]])
    places = embedding.rows(items, tensors)["codebooks"]
    made = embedding.embed({"codebooks": tensors["codebooks"][places]}, {}, tensors, None)
    codebooks = tensors["codebooks"].reshape(3, 16, DIM)
    for item, vector in zip(items.flatten().tolist(), made.reshape(4, DIM), strict=True):
        code = tensors["codes"][item].tolist()
        torch.testing.assert_close(vector, codebooks[0, code[0]] + codebooks[1, code[1]] + codebooks[2, code[2]])


@pytest.mark.parametrize(("levels", "codes", "nbytes"), [(4, 256, 131_072), (3, 128, 49_152)])
def test_the_papers_payloads(levels: int, codes: int, nbytes: int) -> None:
    embedding = make(3952, 32, levels=levels, codes=codes)
    assert embedding.tables["codebooks"].nbytes == nbytes
    assert {name: spec.nbytes for name, spec in embedding.frozen.items()} == {"codes": 3952 * levels}, "sent once"


@pytest.mark.parametrize(
    ("codes", "dtype"),
    [(1, "uint8"), (256, "uint8"), (257, "int16"), (32_768, "int16"), (32_769, "int32"), (2**20, "int32")],
)
def test_codes_are_of_the_smallest_exact_type(codes: int, dtype: str) -> None:
    assert make(codes=codes).frozen["codes"].dtype == dtype


def test_every_code_fits_its_type() -> None:
    """With as many items as codes all rows are used, the last as well."""
    base = torch.randn(300, DIM, generator=generator(0))
    for codes in (256, 300):
        embedding = make(300, codes=codes, levels=1, steps=0)
        tensors = start(embedding, base)
        used = embedding.rows(torch.arange(300), tensors)["codebooks"].flatten()
        assert len(set(used.tolist())) == codes
        assert int(used.max()) == codes - 1


def test_items_that_are_alike_share_rows() -> None:
    base, kind = kinds()
    codes = start(make(), base)["codes"]
    same = kind[:, None] == kind[None]
    shared = (codes[:, None] == codes[None]).double().mean(2)
    assert shared[same].mean() > 4 * shared[~same].mean()


def test_one_catalogue_has_the_same_codes_in_every_variant_and_start() -> None:
    ways = [("P", "zero"), ("P", "semantic"), ("C", "semantic"), ("C", "random")]
    found = [start(make(variant=variant, start=way))["codes"] for variant, way in ways]
    assert all(torch.equal(codes, found[0]) for codes in found)


def test_the_semantic_start_is_the_nearest_to_the_base_that_its_codes_allow() -> None:
    base = kinds()[0]
    tensors = start(make(variant="C"), base)
    codes = tensors["codes"].long()
    design = torch.cat([torch.eye(16)[level] for level in codes.T], dim=1)
    least = design @ torch.linalg.lstsq(design.double(), base.double(), driver="gelsd").solution.float()
    made = tensors["codebooks"].reshape(3, 16, DIM)[torch.arange(3), codes].sum(1)
    torch.testing.assert_close(made, least, atol=1e-3, rtol=0)


def test_in_a_correction_the_semantic_start_keeps_what_it_subtracts() -> None:
    tensors = start(make(variant="P", start="semantic"))
    assert torch.equal(tensors["initial"], tensors["codebooks"])
    assert tensors["initial"].any()
    assert "initial" not in start(make(variant="P", start="zero"))
    assert "initial" not in start(make(variant="C", start="semantic"))


def test_a_catalogue_smaller_than_its_codebooks() -> None:
    """With the defaults, and what such a catalogue has: items without text, and twice the same text."""
    base = torch.cat([torch.zeros(4, DIM), kinds(20)[0], kinds(20)[0][:3]])
    embedding: RqvaeEmbedding = embeddings.get("rqvae")(load_member("embedding", "rqvae"), 27, DIM)
    tensors = start(embedding, base)
    facts = embedding.report(tensors)
    assert facts["distinct_codes"] == 21
    assert facts["items_sharing_a_code"] == 4 + 2 * 3


def test_the_report_counts_what_it_says() -> None:
    embedding = make(6, levels=2, codes=4)
    codes = torch.tensor([[0, 0], [0, 1], [1, 2], [1, 3], [1, 3], [1, 3]], dtype=torch.uint8)
    facts = embedding.report({"codes": codes})
    assert facts["distinct_codes"] == 4
    assert facts["items_sharing_a_code"] == 3
    assert facts["codes_used"] == (2 + 4) / 8
    assert facts["perplexity_1"] == pytest.approx(3 ** (2 / 6) * (3 / 2) ** (4 / 6))
    assert facts["perplexity_2"] == pytest.approx(6 ** (3 / 6) * 2 ** (3 / 6))


def test_starts_that_a_variant_does_not_have() -> None:
    with pytest.raises(ConfigError, match=r"variant=P, rqvae cannot start random: give embedding\.start=zero or sem"):
        compose(["embedding=rqvae", "embedding.start=random"], base=None)
    with pytest.raises(ConfigError, match=r"variant=C, rqvae cannot start zero: give embedding\.start=semantic or ran"):
        compose(["embedding=rqvae", "embedding.variant=C", "embedding.start=zero"], base=None)
    with pytest.raises(ConfigError, match=r"embedding\.hidden"):
        compose(["embedding=rqvae", "embedding.hidden=[]"], base=None)
