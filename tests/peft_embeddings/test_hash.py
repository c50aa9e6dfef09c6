"""Hashed tables: universal functions, codes that tell items apart, and the two ways from rows to a vector."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedrec.config.compose import compose
from fedrec.config.describe import load_member
from fedrec.core.errors import ConfigError
from fedrec.core.registry import embeddings
from fedrec.core.rng import generator
from peft_embeddings.hashing import PRIME, HashedEmbedding, buckets_of, draw_functions, expected_codes

FILMS = 3952
"""Items of MovieLens 1M."""


def make(name: str = "hash", n_items: int = FILMS, dim: int = 8, **values: Any) -> HashedEmbedding:
    made: HashedEmbedding = embeddings.get(name)(load_member("embedding", name, **values), n_items, dim)
    return made


# ---- functions ------------------------------------------------------------------------------------------------------


@given(
    items=st.lists(st.integers(0, PRIME - 1), min_size=1, max_size=20),
    count=st.integers(1, 5),
    buckets=st.integers(1, 2**31 - 1),
    seed=st.integers(0, 1000),
)
def test_buckets_are_those_of_plain_integers(items: list[int], count: int, buckets: int, seed: int) -> None:
    """Also for the largest ids and numbers: nothing overflows."""
    functions = draw_functions(count, generator(seed))
    found = buckets_of(torch.tensor(items), functions, buckets)
    expected = [[((a * x + b) % PRIME) % buckets for a, b in functions.tolist()] for x in items]
    assert found.tolist() == expected


def test_the_largest_numbers_do_not_overflow() -> None:
    most = PRIME - 1
    found = buckets_of(torch.tensor([most]), torch.tensor([[most, most]]), 512)
    assert found.item() == (most * most + most) % PRIME % 512


def test_two_items_share_a_bucket_no_more_often_than_one_in_so_many() -> None:
    """Over the choice of the function: the definition of a universal family."""
    functions, buckets = draw_functions(20_000, generator(0)), 16
    pairs = torch.tensor([[0, 1], [0, 16], [7, 7 + 512], [1, PRIME - 1], [3, 3000]])
    same = buckets_of(pairs[:, 0], functions, buckets) == buckets_of(pairs[:, 1], functions, buckets)
    assert (same.double().mean(1) < 1.1 / buckets).all()


def test_functions_are_independent() -> None:
    codes = buckets_of(torch.arange(100_000), draw_functions(2, generator(1)), 8)
    table = np.histogram2d(codes[:, 0].numpy(), codes[:, 1].numpy(), bins=8)[0]
    np.testing.assert_allclose(table, 100_000 / 64, rtol=0.1)


def test_an_items_code_is_not_a_function_of_its_id_modulo_the_buckets() -> None:
    """Published code hashes `x mod 512`, so that it knows at most 512 different items, whatever the functions."""
    embedding = make()
    frozen = {"functions": embedding.init(torch.zeros(FILMS, 8), generator(0))["functions"]}
    codes = embedding.rows(torch.arange(FILMS), frozen)["rows"]
    assert len(codes.unique(dim=0)) > 3800
    later = torch.arange(512, FILMS)
    assert (codes[later] == codes[later - 512]).all(1).double().mean() < 0.01


# ---- collisions -----------------------------------------------------------------------------------------------------


def test_the_expected_number_of_codes() -> None:
    assert expected_codes(1, 512, 2) == pytest.approx(1)
    assert expected_codes(50, 1, 3) == 1
    assert expected_codes(2, 4, 1) == pytest.approx(1 + 3 / 4)
    assert expected_codes(3, 2, 1) == pytest.approx(2 - 2 / 8)  # both, unless all three are in one
    assert expected_codes(FILMS, 512, 2) == pytest.approx(FILMS - FILMS**2 / 2 / 512**2, abs=1)
    assert expected_codes(1_000_000, 512, 64) == pytest.approx(1_000_000)  # tuples beyond what a float tells apart


@pytest.mark.parametrize(("buckets", "functions"), [(512, 2), (64, 2), (512, 1), (32, 3)])
def test_mostly_as_many_codes_are_found_as_expected(buckets: int, functions: int) -> None:
    """A function maps ids that follow each other in equal steps, so that one draw may do better or worse."""
    embedding = make(buckets=buckets, functions=functions)
    facts = [embedding.report(embedding.init(torch.zeros(FILMS, 8), generator(seed))) for seed in range(31)]
    expected = facts[0]["distinct_codes_expected"]
    assert np.median([fact["distinct_codes"] for fact in facts]) > 0.97 * expected
    assert np.median([fact["buckets_used"] for fact in facts]) > 0.99
    assert all(fact["distinct_vectors"] <= fact["distinct_codes"] <= FILMS for fact in facts)


def test_items_of_the_same_buckets_in_another_order_have_the_same_mean() -> None:
    """Which is why two numbers are reported: codes, and vectors that can differ."""
    embedding = make(buckets=4, n_items=200)
    tensors = embedding.init(torch.randn(200, 8), generator(0))
    table = torch.randn(4, 8, generator=generator(1))
    rows = {"rows": table[embedding.rows(torch.arange(200), tensors)["rows"]]}
    made = embedding.compressed(rows, {}, tensors)
    distinct = len({tuple(round(number, 4) for number in vector) for vector in made.tolist()})
    assert distinct == embedding.report(tensors)["distinct_vectors"] == 10
    assert embedding.report(tensors)["distinct_codes"] == 16


# ---- vectors --------------------------------------------------------------------------------------------------------


def test_a_vector_is_the_mean_of_the_rows_of_its_buckets() -> None:
    embedding = make(functions=3)
    functions = embedding.init(torch.zeros(FILMS, 8), generator(0))["functions"]
    table = torch.randn(512, 8, generator=generator(1))
    items = torch.tensor([0, 511, 512, 3951])
    rows = {"rows": table[embedding.rows(items, {"functions": functions})["rows"]]}
    made = embedding.embed(rows, {}, {}, torch.ones(4, 8))
    for item, vector in zip(items.tolist(), made, strict=True):
        buckets = [((a * item + b) % PRIME) % 512 for a, b in functions.tolist()]
        torch.testing.assert_close(vector, 1 + sum((table[bucket] for bucket in buckets), torch.zeros(8)) / 3)


@pytest.mark.parametrize(("name", "network"), [("hash", 0), ("hash_senet", 2 * 4 * 2 * 32)])
def test_the_papers_payload(name: str, network: int) -> None:
    embedding = make(name, dim=32)
    assert embedding.tables["rows"].nbytes == 65_536
    assert sum(spec.nbytes for spec in embedding.dense.values()) == network
    assert sum(spec.nbytes for spec in embedding.frozen.values()) == 32, "sent once"


def test_the_same_functions_in_every_variant() -> None:
    base = torch.randn(FILMS, 8, generator=generator(0))
    frozen = [make(variant=variant).init(base, generator(3))["functions"] for variant in ("P", "C")]
    assert torch.equal(*frozen)


# ---- weights ----------------------------------------------------------------------------------------------------


def senet(values: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor) -> torch.Tensor:
    """One item's vector by the formula, number by number."""
    squeezed = [sum(row.tolist()) / len(row) for row in values]
    hidden = [max(0.0, sum(s * w1[j, u].item() for j, s in enumerate(squeezed))) for u in range(w1.shape[1])]
    weights = [1 / (1 + math.exp(-sum(z * w2[u, j].item() for u, z in enumerate(hidden)))) for j in range(len(values))]
    return torch.stack([weight * row for weight, row in zip(weights, values, strict=True)]).sum(0)


def weighed(functions: int = 3, items: int = 50, **values: Any) -> tuple[HashedEmbedding, dict[str, torch.Tensor]]:
    """An embedding and its tensors somewhere on the way, not at the start."""
    embedding = make("hash_senet", n_items=items, functions=functions, buckets=16, **values)
    tensors = embedding.init(torch.randn(items, 8, generator=generator(0)), generator(0))
    tensors["rows"] = torch.randn(16, 8, generator=generator(1)) + 0.5
    return embedding, tensors


def test_rows_are_weighed_by_the_papers_network() -> None:
    embedding, tensors = weighed()
    assert {name: spec.shape for name, spec in embedding.dense.items()} == {"W1": (3, 48), "W2": (48, 3)}
    places = embedding.rows(torch.arange(50), tensors)["rows"]
    made = embedding.compressed({"rows": tensors["rows"][places]}, tensors, tensors)
    for item in range(50):
        expected = senet(tensors["rows"][places[item]], tensors["W1"], tensors["W2"])
        torch.testing.assert_close(made[item], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["rows", "W1", "W2"])
def test_the_gradient_of_the_weighing_network_is_that_of_finite_differences(name: str) -> None:
    embedding, tensors = weighed()
    values = {key: tensor.double() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}
    places = embedding.rows(torch.arange(50), tensors)["rows"]

    def total(tensor: torch.Tensor) -> torch.Tensor:
        given = {**values, name: tensor}
        return embedding.compressed({"rows": given["rows"][places]}, given, given).square().sum()

    assert torch.autograd.gradcheck(total, values[name].clone().requires_grad_())


def test_from_zero_the_rows_move_first_and_then_the_network() -> None:
    embedding = make("hash_senet", n_items=40)
    tensors = embedding.init(torch.randn(40, 8, generator=generator(0)), generator(0))
    trained = {name: tensors[name].requires_grad_() for name in ("rows", "W1", "W2")}
    optimiser = torch.optim.Adam(trained.values(), lr=0.01)
    places = embedding.rows(torch.arange(40), tensors)["rows"]
    target = torch.randn(40, 8, generator=generator(1))
    moved = []
    for _ in range(3):
        before = {name: tensor.detach().clone() for name, tensor in trained.items()}
        optimiser.zero_grad()
        part = embedding.compressed({"rows": trained["rows"][places]}, trained, tensors)
        (part - target).square().sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        moved.append({name for name, tensor in trained.items() if not torch.equal(tensor, before[name])})
    assert moved == [{"rows"}, {"rows", "W1", "W2"}, {"rows", "W1", "W2"}]


# ---- what cannot be -------------------------------------------------------------------------------------------------


def test_the_table_alone_cannot_start_at_zero_and_the_error_says_how_it_can() -> None:
    with pytest.raises(ConfigError, match=r"variant=C, hash cannot start zero: give embedding\.start=random"):
        compose(["embedding=hash", "embedding.variant=C", "embedding.start=zero"], base=None)
    with pytest.raises(ConfigError, match=r"variant=P, hash cannot start semantic: give embedding\.start=zero"):
        compose(["embedding=hash", "embedding.start=semantic"], base=None)


def test_a_random_start_needs_a_length() -> None:
    with pytest.raises(ConfigError, match=r"set base_table\.norm above 0"):
        make(variant="C").init(torch.zeros(FILMS, 8), generator(0))
