"""The contract of item embeddings, over every member of the family by itself, in each of its variants and starts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fedrec.config.describe import load_member
from fedrec.core.registry import embeddings
from fedrec.core.rng import generator
from fedrec.core.tensors import TableSpec, Tensors, matches
from peft_embeddings.base import ItemEmbedding

N_ITEMS, DIM, USERS = 40, 8, 3


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


@pytest.fixture(params=cases())
def embedding(request: pytest.FixtureRequest) -> ItemEmbedding:
    return make(request.param)


@pytest.fixture
def base() -> Tensor:
    return torch.randn(N_ITEMS, DIM, generator=generator(0, "base"))


def init(embedding: ItemEmbedding, base: Tensor, seed: int = 0) -> Tensors:
    return embedding.init(base, generator(seed, "init"))


def perturbed(embedding: ItemEmbedding, tensors: Tensors, user: int) -> Tensors:
    """Trainable tensors as they may be after some training of one user: no longer at a start that may be zero."""
    rng = generator(user, "perturbed")
    trained = [*embedding.tables, *embedding.dense]
    return {name: tensors[name] + 0.1 * torch.randn(tensors[name].shape, generator=rng) for name in trained}


def gathered(embedding: ItemEmbedding, tensors: Tensors, frozen: Tensors, items: Tensor) -> tuple[Tensors, Tensors]:
    """The rows of each table, also of frozen ones, that items [i] read, [i, r, width], and the dense tensors."""
    rows = embedding.rows(items, frozen)
    dense = {name: tensors[name] for name in embedding.dense}
    return {name: {**frozen, **tensors}[name][rows[name]] for name in read_by_row(embedding)}, dense


def read_by_row(embedding: ItemEmbedding) -> dict[str, TableSpec]:
    held = {name: spec for name, spec in embedding.frozen.items() if isinstance(spec, TableSpec)}
    return {**embedding.tables, **held}


def vectors(embedding: ItemEmbedding, tensors: Tensors, frozen: Tensors, base: Tensor, items: Tensor) -> Tensor:
    rows, dense = gathered(embedding, tensors, frozen, items)
    return embedding.embed(rows, dense, frozen, base[items] if embedding.uses_base else None)


def frozen_of(embedding: ItemEmbedding, tensors: Tensors) -> Tensors:
    return {name: tensors[name] for name in embedding.frozen}


def test_specifications_and_initial_tensors_agree(embedding: ItemEmbedding, base: Tensor) -> None:
    kinds = [embedding.tables, embedding.dense, embedding.frozen, embedding.kept]
    spec = {name: entry for kind in kinds for name, entry in kind.items()}
    assert len(spec) == sum(len(kind) for kind in kinds), "a name stands for two tensors"
    made = init(embedding, base)
    assert made.keys() == spec.keys()
    for name, tensor in made.items():
        assert matches(spec[name], tensor), f"{name}: {tuple(tensor.shape)} {tensor.dtype}, the spec says {spec[name]}"
        assert not tensor.is_floating_point() or tensor.isfinite().all()
        assert not tensor.requires_grad
    for name in [*embedding.tables, *embedding.dense]:
        assert made[name].is_floating_point(), f"{name} is trained, so it has to be of a floating type"


def test_init_is_a_function_of_base_and_generator_alone(embedding: ItemEmbedding, base: Tensor) -> None:
    before, as_it_was = torch.get_rng_state(), base.clone()
    first, second = init(embedding, base, seed=5), init(embedding, base, seed=5)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), before), "the global generator was used"
    for tensor in first.values():
        if tensor.is_floating_point():
            tensor.add_(1)
    assert torch.equal(base, as_it_was), "an initial tensor shares its memory with the base"


@pytest.mark.parametrize("case", [case for case in cases() if make(case).uses_base])
def test_the_first_vectors_are_the_base_to_the_bit(case: str, base: Tensor) -> None:
    embedding = make(case)
    tensors = init(embedding, base)
    items = torch.arange(N_ITEMS)
    assert torch.equal(vectors(embedding, tensors, frozen_of(embedding, tensors), base, items), base)


def test_rows_are_in_range_and_a_function_of_the_item(embedding: ItemEmbedding, base: Tensor) -> None:
    frozen = frozen_of(embedding, init(embedding, base))
    items = torch.arange(N_ITEMS)
    rows = embedding.rows(items, frozen)
    assert rows.keys() == read_by_row(embedding).keys()
    for name, chosen in rows.items():
        assert chosen.dtype == torch.int64
        assert chosen.shape[:-1] == items.shape
        assert chosen.min() >= 0
        assert chosen.max() < read_by_row(embedding)[name].rows
    shape = (2, 3, 5)
    some = torch.randint(N_ITEMS, shape, generator=generator(1))
    for name, chosen in embedding.rows(some, frozen).items():
        assert torch.equal(chosen, rows[name][some])


def test_vectors_have_the_dimension_and_type_of_the_base(embedding: ItemEmbedding, base: Tensor) -> None:
    tensors = init(embedding, base)
    items = torch.tensor([3, 3, 0, N_ITEMS - 1])
    made = vectors(embedding, tensors, frozen_of(embedding, tensors), base, items)
    assert made.shape == (4, DIM)
    assert made.dtype == torch.float32
    assert torch.equal(made[0], made[1])
    assert vectors(embedding, tensors, frozen_of(embedding, tensors), base, items[:0]).shape == (0, DIM)


def test_a_cohort_is_embedded_as_its_users_are(embedding: ItemEmbedding, base: Tensor) -> None:
    """With a leading user dimension every user has private copies of rows and dense tensors, and other items."""
    start = init(embedding, base)
    frozen = frozen_of(embedding, start)
    items = torch.stack([torch.randperm(N_ITEMS, generator=generator(user, "items"))[:6] for user in range(USERS)])
    alone, rows, dense = [], [], []
    for user in range(USERS):
        tensors = perturbed(embedding, start, user)
        alone.append(vectors(embedding, tensors, frozen, base, items[user]))
        of_user = gathered(embedding, tensors, frozen, items[user])
        rows.append(of_user[0])
        dense.append(of_user[1])
    stacked_rows = {name: torch.stack([of[name] for of in rows]) for name in rows[0]}
    stacked_dense = {name: torch.stack([of[name] for of in dense]) for name in embedding.dense}
    base_rows = base[items] if embedding.uses_base else None
    together = embedding.embed(stacked_rows, stacked_dense, frozen, base_rows)
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-5, atol=1e-6)


def test_dense_tensors_without_a_user_dimension_serve_a_cohort(embedding: ItemEmbedding, base: Tensor) -> None:
    start = init(embedding, base)
    frozen = frozen_of(embedding, start)
    tensors = perturbed(embedding, start, 0)
    items = torch.arange(12).reshape(USERS, 4)
    rows, dense = gathered(embedding, tensors, frozen, items)
    together = embedding.embed(rows, dense, frozen, base[items] if embedding.uses_base else None)
    torch.testing.assert_close(together.reshape(12, DIM), vectors(embedding, tensors, frozen, base, items.reshape(12)))


def test_the_gradient_reaches_every_trainable_tensor(embedding: ItemEmbedding, base: Tensor) -> None:
    start = init(embedding, base)
    tensors = {name: tensor.requires_grad_() for name, tensor in perturbed(embedding, start, 0).items()}
    made = vectors(embedding, tensors, frozen_of(embedding, start), base, torch.arange(N_ITEMS))
    (made * torch.randn(made.shape, generator=generator(2))).sum().backward()  # type: ignore[no-untyped-call]
    for name, tensor in tensors.items():
        assert tensor.grad is not None, f"no gradient reaches {name}"
        assert tensor.grad.isfinite().all()
        assert tensor.grad.any(), f"the gradient of {name} is zero"


def test_the_gradient_at_the_start_moves_something(embedding: ItemEmbedding, base: Tensor) -> None:
    """A correction that starts at zero output must not start at a point that it cannot leave."""
    start = init(embedding, base)
    trained = {name: start[name].requires_grad_() for name in [*embedding.tables, *embedding.dense]}
    made = vectors(embedding, trained, frozen_of(embedding, start), base, torch.arange(N_ITEMS))
    (made * torch.randn(made.shape, generator=generator(3))).sum().backward()  # type: ignore[no-untyped-call]
    assert any(tensor.grad is not None and tensor.grad.any() for tensor in trained.values())


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


def test_what_is_reported_are_plain_numbers(embedding: ItemEmbedding, base: Tensor) -> None:
    frozen = frozen_of(embedding, init(embedding, base))
    facts = embedding.report(frozen)
    assert all(isinstance(value, int | float) and math.isfinite(value) for value in facts.values())
    assert embedding.report(frozen) == facts


@pytest.mark.parametrize("new", [0, 1, 7])
def test_a_grown_catalogue_has_tensors_for_all_and_the_same_vectors_for_the_first(
    embedding: ItemEmbedding, base: Tensor, new: int
) -> None:
    start = init(embedding, base)
    tensors = {**start, **perturbed(embedding, start, 0)}
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    later = torch.randn(new, DIM, generator=generator(4))
    grown = type(embedding)(embedding.config, N_ITEMS + new, DIM)
    made = embedding.grow(tensors, later)
    spec = {**grown.tables, **grown.dense, **grown.frozen}
    assert made.keys() == spec.keys()
    assert all(matches(spec[name], tensor) for name, tensor in made.items())
    frozen, whole = frozen_of(grown, made), torch.cat([base, later])
    items = torch.arange(N_ITEMS + new)
    found = vectors(grown, made, frozen, whole, items)
    assert found.shape == (N_ITEMS + new, DIM)
    assert found.isfinite().all()
    expected = vectors(embedding, tensors, frozen_of(embedding, tensors), base, items[:N_ITEMS])
    assert torch.equal(vectors(grown, made, frozen, whole, items[:N_ITEMS]), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors.items()), "what was given has changed"


def test_an_embedding_that_merges_goes_on_from_vectors_that_are_the_new_base(
    embedding: ItemEmbedding, base: Tensor
) -> None:
    restarted = embedding.restart(generator(5))
    if restarted is None:
        return
    assert embedding.uses_base, "there is something to merge into"
    spec = {**embedding.tables, **embedding.dense}
    assert restarted.keys() == spec.keys()
    assert all(matches(spec[name], tensor) for name, tensor in restarted.items())
    frozen = frozen_of(embedding, init(embedding, base))
    items = torch.arange(N_ITEMS)
    assert torch.equal(vectors(embedding, restarted, frozen, base, items), base)
    again, other = embedding.restart(generator(5)), embedding.restart(generator(6))
    assert again is not None
    assert other is not None
    assert all(torch.equal(restarted[name], again[name]) for name in spec)
    assert any(not torch.equal(restarted[name], other[name]) for name in spec)


def test_low_rank_corrections_merge_and_those_that_would_win_nothing_do_not() -> None:
    """Two corrections that share their hash functions or codes add up to one of the same kind."""
    assert [case for case in cases() if make(case).restart(generator(0)) is not None] == ["lora/P/zero"]
