"""A causal backbone trains alike in both engines, and nothing that comes later reaches what was before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from client_app.answers.evaluation import RankingProtocol, rank_users
from client_app.homes.users import Cohort
from client_app.training import contexts
from client_app.training.cohort import CohortEngine
from client_app.training.engine import Engine, GlobalModel
from client_app.training.history import SegmentedHistory, SharedHistory
from client_app.training.oracle import OracleEngine
from client_app.training.segments import Segments
from commands.baseline.central import PooledHistory
from fedrec.backbones.base import Backbone, ItemSequence, ScoreContext
from fedrec.backbones.dot import dot
from fedrec.backbones.history import PlainHistory
from fedrec.config.describe import load_member
from fedrec.core import registry
from fedrec.core.registry import MemberConfig
from fedrec.core.rng import counter_normal, generator
from fedrec.core.tensors import Spec, Tensors, TensorSpec
from fedrec.data.negatives import NegativeSampler
from fedrec.optim.base import Adam, LocalStep, Recipe, Sgd
from fedrec.optim.losses import LOSSES
from fedrec.stages.chain import plain_stages
from fedrec.stages.limits import Limits
from peft_embeddings.model import Model

DIM, ITEMS = 4, 40
RANKED = ITEMS // 2
"""Items below are in nobody's history, and all that negatives are drawn from: whatever a history holds, they stay."""


class LastFive(Backbone):
    """Nothing of its own: a state is the mean of the last five items."""

    causal = True
    last = 5

    @property
    def private(self) -> Spec:
        return {}

    @property
    def history_length(self) -> int:
        return self.last

    def init_private(self, seed: int, keys: np.ndarray) -> Tensors:
        return {}

    def states(
        self, shared: Tensors, private: Tensors, frozen: Tensors, sequence: ItemSequence, context: ScoreContext
    ) -> Tensors:
        n = sequence.items.shape[-1]
        before = torch.arange(n + 1).unsqueeze(1) - torch.arange(n)
        weights = ((before >= 1) & (before <= self.last)).to(sequence.vectors.dtype)
        return {"state": (weights / weights.sum(1, keepdim=True).clamp(min=1)) @ sequence.vectors}

    def score(self, shared: Tensors, private: Tensors, item_vectors: Tensor, context: ScoreContext) -> Tensor:
        return dot(private["state"], item_vectors)


class Gated(LastFive):
    """All that the contract offers: shared and private tensors, dropout on inputs and on items, two tensors a state."""

    last = 7

    @property
    def shared(self) -> Spec:
        return {"map": TensorSpec((self.dim, self.dim)), "bias": TensorSpec((self.dim,))}

    @property
    def private(self) -> Spec:
        return {"user": TensorSpec((self.dim,))}

    def init_shared(self, rng: torch.Generator) -> Tensors:
        return {name: torch.randn(spec.shape, generator=rng) * 0.5 for name, spec in self.shared.items()}

    def init_private(self, seed: int, keys: np.ndarray) -> Tensors:
        return {"user": torch.from_numpy(counter_normal(seed, keys[:, None], np.arange(self.dim)[None, :])).float()}

    def states(
        self, shared: Tensors, private: Tensors, frozen: Tensors, sequence: ItemSequence, context: ScoreContext
    ) -> Tensors:
        vectors = sequence.vectors
        if context.uniform is not None:
            vectors = vectors * (context.uniform("input", 1) >= 0.3)
        read = super().states(shared, private, frozen, sequence._replace(vectors=vectors), context)["state"]
        mapped = torch.tanh(read @ shared["map"] + shared["bias"].unsqueeze(-2))
        return {"state": mapped + private["user"].unsqueeze(-2), "gate": read.sum(-1)}

    def score(self, shared: Tensors, private: Tensors, item_vectors: Tensor, context: ScoreContext) -> Tensor:
        if context.uniform is not None:
            item_vectors = item_vectors * (context.uniform("item", 1) >= 0.2)
        turned = item_vectors @ shared["map"]
        return dot(private["state"], turned) + torch.sigmoid(private["gate"]).unsqueeze(-1)


BACKBONES = {"last_five": LastFive, "gated": Gated}


class Steps(Recipe):
    """Given steps; of a user's pairs perhaps one alone counts."""

    def __init__(self, steps: Sequence[LocalStep], q: int, shared: bool, only: int | None = None) -> None:
        self._steps, self._q, self._shared, self._only = steps, q, shared, only

    @property
    def negatives(self) -> int:
        return self._q

    @property
    def shared_negatives(self) -> bool:
        return self._shared

    def local_steps(self) -> Sequence[LocalStep]:
        return self._steps

    def solve_steps(self) -> Sequence[LocalStep]:
        return [LocalStep(True, False, Adam(0.05))] * 2

    def loss(self, positive: Tensor, negative: Tensor, mask: Tensor) -> Tensor:
        if self._only is not None:
            mask = mask * (torch.arange(mask.shape[-1]) == self._only)
        return LOSSES["softmax"](positive, negative, mask)

    def server_update(self, model: Tensors, mean_delta: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        raise AssertionError("no server here")


RECIPES = {
    "sgd": [LocalStep(True, True, Sgd(0.3))] * 2,
    "adam": [LocalStep(True, True, Adam(0.01))] * 3,
    "private_first": [LocalStep(True, False, Adam(0.05))] * 2 + [LocalStep(False, True, Sgd(1.0), 3.0)],
}


def model_of(embedding: str, backbone: str) -> GlobalModel:
    made = BACKBONES[backbone](MemberConfig(backbone), DIM)
    model = Model(registry.embeddings.get(embedding)(load_member("embedding", embedding), ITEMS, DIM), made)
    rng = generator(3, "test")
    trainable, frozen = model.init(torch.randn(ITEMS, DIM, generator=rng), made.init_shared(rng), rng)
    moved = {name: (t + 0.1 * torch.randn(t.shape, generator=rng)).double() for name, t in trainable.items()}
    return GlobalModel(model, moved, {n: t.double() if t.is_floating_point() else t for n, t in frozen.items()})


def cohort_of(lengths: Sequence[int], seed: int = 0) -> Cohort:
    """Histories of these lengths, of items from `RANKED` on."""
    rng = np.random.default_rng(seed)
    rows = [RANKED + rng.permutation(ITEMS - RANKED)[:length] for length in lengths]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Cohort(rng.integers(0, 2**63, len(lengths)).astype(np.uint64), offsets, np.concatenate(rows))


def private_of(model: GlobalModel, cohort: Cohort) -> Tensors:
    return {name: t.double() for name, t in model.model.backbone.init_private(1, cohort.keys).items()}


def engines(recipe: Recipe, pairs_at_once: int = 65_536) -> list[Engine]:
    sampler, stages = NegativeSampler(np.arange(RANKED)), plain_stages(Limits(100, 1e9))
    kinds: list[type[Engine]] = [OracleEngine, CohortEngine]
    return [kind(recipe, sampler, stages, pairs_at_once) for kind in kinds]


def assert_same(model: GlobalModel, cohort: Cohort, recipe: Recipe, pairs_at_once: int = 65_536) -> None:
    private = private_of(model, cohort)
    pair = engines(recipe, pairs_at_once)
    slow, fast = (engine.train(model, cohort, private, seed=5) for engine in pair)
    assert slow.update.users == len(cohort)
    np.testing.assert_array_equal(slow.taken, fast.taken)
    np.testing.assert_allclose(fast.update.loss, slow.update.loss, rtol=1e-9)
    torch.testing.assert_close(fast.update.total, slow.update.total, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(fast.private, slow.private, atol=1e-9, rtol=1e-9)
    slow_solved, fast_solved = (engine.solve(model, cohort, private, seed=6) for engine in pair)
    torch.testing.assert_close(fast_solved, slow_solved, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("shared", [True, False], ids=["shared negatives", "negatives of each"])
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("embedding", ["lora", "hash_senet"])
def test_equals_the_oracle(embedding: str, backbone: str, recipe: str, shared: bool) -> None:
    assert_same(model_of(embedding, backbone), cohort_of([7, 1, 19, 2]), Steps(RECIPES[recipe], 3, shared))


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=6),
    recipe=st.sampled_from(sorted(RECIPES)),
    shared=st.booleans(),
    pairs_at_once=st.integers(1, 60),
    seed=st.integers(0, 1000),
)
def test_equals_the_oracle_for_any_shape(
    lengths: list[int], recipe: str, shared: bool, pairs_at_once: int, seed: int
) -> None:
    assert_same(model_of("lora", "gated"), cohort_of(lengths, seed), Steps(RECIPES[recipe], 2, shared), pairs_at_once)


@pytest.mark.parametrize("kind", [OracleEngine, CohortEngine])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_what_comes_later_changes_no_loss_and_no_gradient(backbone: str, kind: type[Engine]) -> None:
    """Of each item's loss alone: other items after it, or none, and the update is the same to the bit."""
    model = model_of("full", backbone)
    step = LocalStep(True, True, Sgd(1.0))
    whole, rng = cohort_of([10]), np.random.default_rng(1)
    for t in range(10):
        engine = next(made for made in engines(Steps([step], 5, True, only=t)) if isinstance(made, kind))
        other = whole.items.copy()
        other[t + 1 :] = rng.permutation(np.setdiff1d(np.arange(RANKED, ITEMS), whole.items))[: 9 - t]
        found = []
        for items in (whole.items, other):
            cohort = Cohort(whole.keys, whole.offsets, items)
            found.append(engine.train(model, cohort, private_of(model, cohort), seed=5))
        first, second = found
        assert first.update.loss == second.update.loss
        assert all(torch.equal(first.update.total[name], tensor) for name, tensor in second.update.total.items())
        assert all(torch.equal(first.private[name], tensor) for name, tensor in second.private.items())
        moved = set(torch.nonzero(first.update.total["embedding.items"].any(1)).flatten().tolist())
        assert not moved & set(whole.items[t + 1 :].tolist())
        last = model.model.backbone.history_length
        assert last is not None
        if backbone == "last_five" and t:
            assert moved >= set(whole.items[max(0, t - last) : t + 1].tolist()), "and what comes before matters"


@pytest.mark.parametrize("length", [None, 1, 3, 50])
def test_every_kind_of_history_has_the_latest_items_in_order(length: int | None) -> None:
    cohort = cohort_of([7, 1, 19, 2, 8])
    table = torch.randn(ITEMS, DIM, generator=generator(0, "table"), dtype=torch.float64)
    kinds: list[Any] = [
        SharedHistory(cohort, lambda block: table[block], DIM),
        PooledHistory(torch.from_numpy(cohort.items), torch.from_numpy(cohort.offsets), table),
    ]
    for per_segment, whole in ((0, False), (10_000, False), (0, True)):
        uncut = int(cohort.lengths.max()) if whole else None
        cut = Segments.of(cohort, per_segment, DIM, torch.float64, torch.device("cpu"), uncut)
        items = cut.fill(torch.from_numpy(cohort.items))
        vectors = table[items].masked_fill(cut.mask.unsqueeze(-1) == 0, 1e6)
        kinds.append(SegmentedHistory(items, vectors, cut, len(cohort)))
    for user in range(len(cohort)):
        own = torch.from_numpy(cohort.part(user, user + 1).items)
        expected = own if length is None else own[-length:]
        plain = PlainHistory(own, table[own]).sequence(length)
        for history in kinds:
            items, vectors, mask = history.sequence(length)
            assert items.shape == mask.shape == vectors.shape[:2]
            for found in (items[user][mask[user]], plain.items):
                assert torch.equal(found, expected)
            for found in (vectors[user][mask[user]], plain.vectors):
                assert torch.equal(found, table[expected])
            assert torch.equal(mask[user], torch.arange(mask.shape[1]) < len(expected)), "padding is at the end"


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_ranking_scores_by_the_state_after_the_last_item(backbone: str) -> None:
    """Of each user by hand, one without a history among them; and in whatever chunks."""
    model = model_of("lora", backbone)
    lengths, own = [9, 0, 1, 6], model.model.backbone
    cohort = cohort_of(lengths)
    positives = np.array([3, 5, 11, 0])
    protocol = RankingProtocol((1, 5), NegativeSampler(np.arange(RANKED)), 0, 0)
    found = rank_users(model, cohort, positives, private_of(model, cohort), protocol)
    table = model.item_vectors(model.trainable, torch.arange(ITEMS))
    reciprocal = 0.0
    for user in range(len(lengths)):
        items = torch.from_numpy(cohort.part(user, user + 1).items)
        private = {name: tensor[user] for name, tensor in private_of(model, cohort).items()}
        shared, ranking = model.model.shared(model.trainable), ScoreContext(training=False)
        sequence = PlainHistory(items, table[items]).sequence()
        state = {name: t[-1] for name, t in own.states(shared, private, {}, sequence, ranking).items()}
        scores = own.score(shared, state, table[:RANKED], ranking).float()
        better = (scores > scores[positives[user]]).sum() + 0.5 * ((scores == scores[positives[user]]).sum() - 1)
        reciprocal += 1 / (1 + float(better))
    assert found["users"] == len(lengths)
    if backbone == "gated":  # without a tie, that is
        assert found["mrr"] == pytest.approx(reciprocal)


def test_long_histories_train_a_few_at_once() -> None:
    """What states hold is counted: a chunk is as wide as its longest history."""

    class Square(LastFive):
        def numbers_per_history(self, length: int) -> int:
            return length * length

    model = model_of("full", "last_five")
    square = Model(model.model.embedding, Square(MemberConfig("square"), DIM))
    engine = engines(Steps(RECIPES["sgd"], 2, True), pairs_at_once=60)[1]
    assert isinstance(engine, CohortEngine)
    cohort = cohort_of([20, 2, 3, 2, 20])
    assert [chunk.tolist() for chunk in engine._chunks(contexts.whole(cohort), model.model)] == [[1, 3, 2], [0, 4]]
    assert [chunk.tolist() for chunk in engine._chunks(contexts.whole(cohort), square)] == [[1, 3, 2], [0], [4]]
