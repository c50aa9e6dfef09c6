"""The contract of item embeddings."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from fedrec.core.rng import generator
from fedrec.core.tensors import TableSpec, Tensors, matches

if TYPE_CHECKING:
    from peft_embeddings.base import ItemEmbedding


N_ITEMS, DIM, USERS = 40, 8, 3
"""Of which catalogue the member has to be."""


def init(embedding: ItemEmbedding, base: Tensor, seed: int = 0) -> Tensors:
    """Initial tensors of all four kinds."""
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
    """The tables and frozen tensors that are read by row."""
    held = {name: spec for name, spec in embedding.frozen.items() if isinstance(spec, TableSpec)}
    return {**embedding.tables, **held}


def vectors(embedding: ItemEmbedding, tensors: Tensors, frozen: Tensors, base: Tensor, items: Tensor) -> Tensor:
    """Vectors [items, dim]."""
    rows, dense = gathered(embedding, tensors, frozen, items)
    return embedding.embed(rows, dense, frozen, base[items] if embedding.uses_base else None)


def frozen_of(embedding: ItemEmbedding, tensors: Tensors) -> Tensors:
    """The frozen ones among the initial tensors."""
    return {name: tensors[name] for name in embedding.frozen}


class EmbeddingContract:
    """What models and engines take for granted of an item embedding."""

    @pytest.fixture
    def embedding(self) -> ItemEmbedding:
        """The member that is held to the contract, for `N_ITEMS` items and vectors of `DIM` numbers."""
        raise NotImplementedError("override this fixture: it gives the member")

    @pytest.fixture
    def base(self) -> Tensor:
        """A base table."""
        return torch.randn(N_ITEMS, DIM, generator=generator(0, "base"))

    def test_specifications_and_initial_tensors_agree(self, embedding: ItemEmbedding, base: Tensor) -> None:
        kinds = [embedding.tables, embedding.dense, embedding.frozen, embedding.kept]
        spec = {name: entry for kind in kinds for name, entry in kind.items()}
        assert len(spec) == sum(len(kind) for kind in kinds), "a name stands for two tensors"
        made = init(embedding, base)
        assert made.keys() == spec.keys()
        for name, tensor in made.items():
            found = f"{tuple(tensor.shape)} {tensor.dtype}"
            assert matches(spec[name], tensor), f"{name}: {found}, the specification says {spec[name]}"
            assert not tensor.is_floating_point() or tensor.isfinite().all()
            assert not tensor.requires_grad
        for name in [*embedding.tables, *embedding.dense]:
            assert made[name].is_floating_point(), f"{name} is trained, so it has to be of a floating type"

    def test_init_is_a_function_of_base_and_generator_alone(self, embedding: ItemEmbedding, base: Tensor) -> None:
        before, as_it_was = torch.get_rng_state(), base.clone()
        first, second = init(embedding, base, seed=5), init(embedding, base, seed=5)
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert torch.equal(torch.get_rng_state(), before), "the global generator was used"
        for tensor in first.values():
            if tensor.is_floating_point():
                tensor.add_(1)
        assert torch.equal(base, as_it_was), "an initial tensor shares its memory with the base"

    def test_rows_are_in_range_and_a_function_of_the_item(self, embedding: ItemEmbedding, base: Tensor) -> None:
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

    def test_vectors_have_the_dimension_and_type_of_the_base(self, embedding: ItemEmbedding, base: Tensor) -> None:
        tensors = init(embedding, base)
        items = torch.tensor([3, 3, 0, N_ITEMS - 1])
        made = vectors(embedding, tensors, frozen_of(embedding, tensors), base, items)
        assert made.shape == (4, DIM)
        assert made.dtype == torch.float32
        assert torch.equal(made[0], made[1])
        assert vectors(embedding, tensors, frozen_of(embedding, tensors), base, items[:0]).shape == (0, DIM)

    def test_a_cohort_is_embedded_as_its_users_are(self, embedding: ItemEmbedding, base: Tensor) -> None:
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

    def test_dense_tensors_without_a_user_dimension_serve_a_cohort(
        self, embedding: ItemEmbedding, base: Tensor
    ) -> None:
        start = init(embedding, base)
        frozen = frozen_of(embedding, start)
        tensors = perturbed(embedding, start, 0)
        items = torch.arange(12).reshape(USERS, 4)
        rows, dense = gathered(embedding, tensors, frozen, items)
        together = embedding.embed(rows, dense, frozen, base[items] if embedding.uses_base else None)
        torch.testing.assert_close(
            together.reshape(12, DIM), vectors(embedding, tensors, frozen, base, items.reshape(12))
        )

    def test_the_gradient_reaches_every_trainable_tensor(self, embedding: ItemEmbedding, base: Tensor) -> None:
        if not (embedding.tables or embedding.dense):
            return
        start = init(embedding, base)
        tensors = {name: tensor.requires_grad_() for name, tensor in perturbed(embedding, start, 0).items()}
        made = vectors(embedding, tensors, frozen_of(embedding, start), base, torch.arange(N_ITEMS))
        (made * torch.randn(made.shape, generator=generator(2))).sum().backward()  # type: ignore[no-untyped-call]
        for name, tensor in tensors.items():
            assert tensor.grad is not None, f"no gradient reaches {name}"
            assert tensor.grad.isfinite().all()
            assert tensor.grad.any(), f"the gradient of {name} is zero"

    def test_the_gradient_at_the_start_moves_something(self, embedding: ItemEmbedding, base: Tensor) -> None:
        """A correction that starts at zero output must not start at a point that it cannot leave."""
        if not (embedding.tables or embedding.dense):
            return
        start = init(embedding, base)
        trained = {name: start[name].requires_grad_() for name in [*embedding.tables, *embedding.dense]}
        made = vectors(embedding, trained, frozen_of(embedding, start), base, torch.arange(N_ITEMS))
        total = (made * torch.randn(made.shape, generator=generator(3))).sum()
        gradients = torch.autograd.grad(total, list(trained.values()), materialize_grads=True)
        assert any(bool(gradient.any()) for gradient in gradients)

    def test_what_is_reported_are_plain_numbers(self, embedding: ItemEmbedding, base: Tensor) -> None:
        frozen = frozen_of(embedding, init(embedding, base))
        facts = embedding.report(frozen)
        assert all(type(value) in (int, float) and math.isfinite(value) for value in facts.values())
        assert embedding.report(frozen) == facts

    @pytest.mark.parametrize("new", [0, 1, 7])
    def test_a_grown_catalogue_has_tensors_for_all_and_the_same_vectors_for_the_first(
        self, embedding: ItemEmbedding, base: Tensor, new: int
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
        self, embedding: ItemEmbedding, base: Tensor
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
