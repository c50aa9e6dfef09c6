"""A backbone that reads the user's history trains and ranks the same in every engine, for histories of any shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from client_app.homes.users import Cohort
from client_app.training import history as history_module
from client_app.training.cohort import CohortEngine
from client_app.training.engine import Engine, GlobalModel
from client_app.training.history import SegmentedHistory, SharedHistory
from client_app.training.oracle import OracleEngine
from client_app.training.segments import Segments
from fedrec.backbones.base import Backbone, History, ScoreContext
from fedrec.backbones.history import PlainHistory
from fedrec.config.describe import complete_members, load_member
from fedrec.core import registry
from fedrec.core.registry import MemberConfig
from fedrec.core.rng import counter_normal, generator
from fedrec.core.tensors import Spec, TableSpec, Tensors, TensorSpec
from fedrec.data.negatives import NegativeSampler
from fedrec.optim.base import Adam, LocalStep, Recipe, Sgd
from fedrec.optim.losses import bpr
from fedrec.stages.chain import plain_stages
from fedrec.stages.limits import Limits
from peft_embeddings.base import ItemEmbedding
from peft_embeddings.model import Model

DIM, ITEMS = 4, 30
CPU = torch.device("cpu")


class Reader(Backbone):
    """Reads all that a history offers, through a shared matrix, with dropout on the items."""

    reads_history = True

    @property
    def shared(self) -> Spec:
        return {"map": TensorSpec((self.dim, self.dim))}

    @property
    def private(self) -> Spec:
        return {"user": TensorSpec((self.dim,))}

    def frozen(self, n_items: int) -> Spec:
        return {"weight": TensorSpec((n_items,))}

    def init_frozen(self, counts: Tensor) -> Tensors:
        return {"weight": counts / 7}

    def init_shared(self, rng: torch.Generator) -> Tensors:
        return {"map": torch.randn(self.dim, self.dim, generator=rng) * 0.5}

    def init_private(self, seed: int, keys: np.ndarray) -> Tensors:
        return {"user": torch.from_numpy(counter_normal(seed, keys[:, None], np.arange(self.dim)[None, :])).float()}

    def user(self, shared: Tensors, private: Tensors, frozen: Tensors, history: History) -> Tensors:
        size = (history.length + 1).unsqueeze(-1)
        read = history.sum() / size + history.sum(frozen["weight"]) / size.sqrt()
        total = 0.1 * history.total(frozen["weight"]).unsqueeze(-1)
        return {"vector": private["user"] + total + (read.unsqueeze(-2) @ shared["map"]).squeeze(-2)}

    def score(self, shared: Tensors, private: Tensors, item_vectors: Tensor, context: ScoreContext) -> Tensor:
        if context.uniform is not None:
            item_vectors = item_vectors * (context.uniform("item", 1) >= 0.2)
        return (private["vector"].unsqueeze(-2) * item_vectors).sum(-1)


class Buckets(ItemEmbedding):
    """Two rows of a small table for each item, so that items share rows, and a dense map of their sum."""

    uses_base = False

    @property
    def tables(self) -> Mapping[str, TableSpec]:
        return {"rows": TableSpec((7, 3))}

    @property
    def dense(self) -> Mapping[str, TensorSpec]:
        return {"map": TensorSpec((3, self.dim))}

    def init(self, base: Tensor, rng: torch.Generator) -> Tensors:
        return {"rows": torch.randn(7, 3, generator=rng), "map": torch.randn(3, self.dim, generator=rng)}

    def rows(self, items: Tensor, frozen: Tensors) -> Mapping[str, Tensor]:
        return {"rows": torch.stack([items % 7, (items * 3 + items // 7) % 7], -1)}

    def embed(self, rows: Tensors, dense: Tensors, frozen: Tensors, base_rows: Tensor | None) -> Tensor:
        return rows["rows"].sum(-2) @ dense["map"]


class Steps(Recipe):
    def __init__(self, *steps: LocalStep) -> None:
        self.steps = steps

    @property
    def negatives(self) -> int:
        return 2

    def local_steps(self) -> Sequence[LocalStep]:
        return self.steps

    def solve_steps(self) -> Sequence[LocalStep]:
        return [LocalStep(True, False, Adam(0.05))] * 3

    def loss(self, positive: Tensor, negative: Tensor, mask: Tensor) -> Tensor:
        return bpr(positive, negative, mask)

    def server_update(self, model: Tensors, mean_delta: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        raise AssertionError("no server here")


RECIPES = {
    "adam": Steps(*[LocalStep(True, True, Adam(0.01))] * 3),
    "private_first": Steps(*[LocalStep(True, False, Adam(0.05))] * 2, LocalStep(False, True, Sgd(1.0))),
    "shared_only": Steps(*[LocalStep(False, True, Sgd(0.3))] * 2),
}


DEEP = "fedpergnn, 4 layers"


def backbone_of(name: str) -> Backbone:
    if name == "reader":
        return Reader(MemberConfig("reader"), DIM)
    values = {"layers": 4} if name == DEEP else {}
    name = name.partition(",")[0]
    made: Backbone = registry.backbones.get(name)(load_member("backbone", name, **values), DIM)
    return made


READERS = ["reader", DEEP, *(name for name in complete_members("backbone") if backbone_of(name).reads_history)]


def model_of(embedding: str, backbone: str) -> GlobalModel:
    if embedding == "buckets":
        made: ItemEmbedding = Buckets(MemberConfig("buckets"), ITEMS, DIM)
    else:
        made = registry.embeddings.get(embedding)(load_member("embedding", embedding), ITEMS, DIM)
    rng = generator(3, "test")
    model = Model(made, backbone_of(backbone))
    base, shared = torch.randn(ITEMS, DIM, generator=rng), model.backbone.init_shared(rng)
    trainable, frozen = model.init(base, shared, rng, counts=1 + torch.arange(ITEMS) % 5.0)
    moved = {name: (t + 0.1 * torch.randn(t.shape, generator=rng)).double() for name, t in trainable.items()}
    return GlobalModel(model, moved, {n: t.double() if t.is_floating_point() else t for n, t in frozen.items()})


def cohort_of(lengths: Sequence[int], seed: int = 0, again: int = 0) -> Cohort:
    """Histories of these lengths; the first `again` items of each stand there once more."""
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(ITEMS)[:length] for length in lengths]
    rows = [np.concatenate([row, row[:again]]) for row in rows]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    keys = rng.integers(0, 2**63, len(lengths)).astype(np.uint64)
    return Cohort(keys, offsets, np.concatenate(rows).astype(np.int64))


def pair_of(recipe: Recipe, pairs_at_once: int = 65_536) -> list[Engine]:
    sampler, stages = NegativeSampler(np.arange(ITEMS)), plain_stages(Limits(100, 1e9))
    kinds: list[type[Engine]] = [OracleEngine, CohortEngine]
    return [kind(recipe, sampler, stages, pairs_at_once) for kind in kinds]


def private_of(model: GlobalModel, cohort: Cohort) -> Tensors:
    return {name: tensor.double() for name, tensor in model.model.backbone.init_private(1, cohort.keys).items()}


def assert_same(model: GlobalModel, cohort: Cohort, recipe: Recipe, pairs_at_once: int = 65_536) -> None:
    private = private_of(model, cohort)
    pair = pair_of(recipe, pairs_at_once)
    slow, fast = (engine.train(model, cohort, private, seed=5) for engine in pair)
    np.testing.assert_array_equal(slow.taken, fast.taken)
    np.testing.assert_allclose(fast.update.loss, slow.update.loss, rtol=1e-9)
    torch.testing.assert_close(fast.update.total, slow.update.total, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(fast.private, slow.private, atol=1e-9, rtol=1e-9)
    slow_solved, fast_solved = (engine.solve(model, cohort, private, seed=6) for engine in pair)
    torch.testing.assert_close(fast_solved, slow_solved, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("backbone", READERS)
@pytest.mark.parametrize("embedding", ["full", "lora", "buckets"])
def test_equals_the_oracle(embedding: str, backbone: str, recipe: str) -> None:
    assert_same(model_of(embedding, backbone), cohort_of([7, 1, 19, 29, 2]), RECIPES[recipe])


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 28), min_size=1, max_size=7),
    again=st.integers(0, 3),
    embedding=st.sampled_from(["full", "lora", "buckets"]),
    recipe=st.sampled_from(sorted(RECIPES)),
    pairs_at_once=st.integers(1, 60),
    seed=st.integers(0, 1000),
)
def test_equals_the_oracle_for_any_shape(
    lengths: list[int], again: int, embedding: str, recipe: str, pairs_at_once: int, seed: int
) -> None:
    cohort = cohort_of(lengths, seed, again)
    assert_same(model_of(embedding, "reader"), cohort, RECIPES[recipe], pairs_at_once)


def test_the_gradient_of_a_user_reaches_every_item_of_its_history() -> None:
    model = model_of("full", "reader")
    items = torch.tensor([3, 5, 8])
    table = model.trainable["embedding.items"].clone().requires_grad_()
    history = PlainHistory(items, table[items])
    private = {name: tensor[0] for name, tensor in private_of(model, cohort_of([3])).items()}
    user = model.model.user(model.trainable, model.frozen, private, history)
    user["vector"].sum().backward()  # type: ignore[no-untyped-call]
    assert table.grad is not None
    assert set(torch.nonzero(table.grad.any(1)).flatten().tolist()) == {3, 5, 8}


def by_hand(table: Tensor, cohort: Cohort, weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    rows = [cohort.part(user, user + 1).items.tolist() for user in range(len(cohort))]
    given_ = torch.ones(ITEMS, dtype=torch.float64) if weights is None else weights
    sums = [sum((given_[item] * table[item] for item in row), torch.zeros(DIM, dtype=torch.float64)) for row in rows]
    totals = [sum(float(given_[item]) for item in row) for row in rows]
    return (
        torch.stack(sums),
        torch.tensor(totals, dtype=torch.float64),
        torch.tensor([float(len(row)) for row in rows]).double(),
    )


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 28), min_size=1, max_size=7),
    again=st.integers(0, 2),
    per_segment=st.sampled_from([0, 10, 10_000]),
    weighed=st.booleans(),
    at_once=st.integers(1, 50),
)
def test_all_kinds_of_history_are_sums_over_the_users_own_items(
    lengths: list[int], again: int, per_segment: int, weighed: bool, at_once: int
) -> None:
    cohort = cohort_of(lengths, again=again)
    rng = generator(0, "history")
    table = torch.randn(ITEMS, DIM, generator=rng, dtype=torch.float64)
    weights = torch.rand(ITEMS, generator=rng, dtype=torch.float64) if weighed else None
    segments = Segments.of(cohort, per_segment, DIM, torch.float64, CPU)
    items = segments.fill(torch.from_numpy(cohort.items))
    # What stands in the padding must not matter.
    vectors = table[items].masked_fill(segments.mask.unsqueeze(-1) == 0, 1e6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history_module, "_ITEMS_AT_ONCE", at_once)
        shared = SharedHistory(cohort, lambda block: table[block], DIM)
        kinds: list[Any] = [SegmentedHistory(items, vectors, segments, len(cohort)), shared]
        expected = by_hand(table, cohort, weights)
        ones = torch.ones(ITEMS, dtype=torch.float64)
        for kind in kinds:
            found = kind.sum(weights), kind.total(ones if weights is None else weights), kind.length
            torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
    for user in range(len(cohort)):
        own = torch.from_numpy(cohort.part(user, user + 1).items)
        plain = PlainHistory(own, table[own])
        found = plain.sum(weights), plain.total(ones if weights is None else weights), plain.length
        torch.testing.assert_close(found, tuple(part[user] for part in expected), atol=1e-9, rtol=1e-9)


def test_a_user_without_a_history_reads_nothing() -> None:
    """Ranking may ask for one: its only item is the one that is held out."""
    cohort = Cohort(np.arange(2, dtype=np.uint64), np.array([0, 0, 1]), np.array([4]))
    shared = SharedHistory(cohort, lambda block: torch.ones(len(block), DIM, dtype=torch.float64), DIM)
    assert shared.length.tolist() == [0, 1]
    assert shared.sum()[0].tolist() == [0] * DIM
    assert shared.total(torch.ones(ITEMS, dtype=torch.float64)).tolist() == [0, 1]
