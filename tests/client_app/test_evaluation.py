"""Ranking on the client against an oracle that looks at one user and one candidate at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from client_app.answers import evaluation
from client_app.answers.evaluation import RankingProtocol, rank_users
from client_app.homes.users import Cohort
from client_app.training.engine import GlobalModel
from fedrec.backbones.base import Backbone, ScoreContext
from fedrec.backbones.history import PlainHistory
from fedrec.config.describe import complete_members, load_member
from fedrec.core.errors import FedrecError
from fedrec.core.registry import backbones, embeddings
from fedrec.core.rng import generator
from fedrec.core.tensors import Tensors
from fedrec.data.negatives import NegativeSampler
from fedrec.evaluation.metrics import sampled_negatives
from peft_embeddings.model import Model

DIM, ITEMS = 4, 30
ELIGIBLE = np.array([item for item in range(ITEMS) if item % 7], dtype=np.int64)
KS = (1, 5, 10)


def global_model(embedding: str = "lora", backbone: str = "fedmf", scale: float = 1.0) -> GlobalModel:
    head = backbones.get(backbone)(load_member("backbone", backbone), DIM)
    model = Model(embeddings.get(embedding)(load_member("embedding", embedding), ITEMS, DIM), head)
    rng = generator(1, "model")
    counts = torch.arange(ITEMS) % 5.0  # users per item, for a backbone that has them counted
    trainable, frozen = model.init(torch.randn(ITEMS, DIM, generator=rng), head.init_shared(rng), rng, counts)
    moved = {
        name: (tensor + 0.3 * torch.randn(tensor.shape, generator=rng)) * scale for name, tensor in trainable.items()
    }
    # Codes, hash functions and degrees are no vectors.
    held = {
        name: tensor * scale if tensor.is_floating_point() and not name.startswith("backbone.") else tensor
        for name, tensor in frozen.items()
    }
    return GlobalModel(model, moved, held)


def users(lengths: Sequence[int], seed: int = 0, backbone: str = "fedmf") -> tuple[Cohort, NDArray[np.int64], Tensors]:
    """Histories, held-out items (one in seven of them is not eligible), and private tensors that differ."""
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(ITEMS)[: length + 1] for length in lengths]
    items = np.concatenate([row[:-1] for row in drawn]).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    keys = rng.integers(0, 2**64, len(lengths), dtype=np.uint64)
    positives = np.array([row[-1] for row in drawn], dtype=np.int64)
    private = global_model(backbone=backbone).model.backbone.init_private(3, keys)
    moved = {
        name: tensor * 2 + torch.randn(tensor.shape, generator=generator(4, name)) for name, tensor in private.items()
    }
    return Cohort(keys, offsets, items), positives, moved


def protocol(sampled: int = 0, eligible: NDArray[np.int64] = ELIGIBLE) -> RankingProtocol:
    return RankingProtocol(KS, NegativeSampler(eligible), sampled, seed=11)


def by_hand(scores: dict[int, float], positive: int, prefix: str = "") -> dict[str, float]:
    """One user's metrics as the mean over all orders of its ties."""
    higher = sum(score > scores[positive] for score in scores.values())
    ties = sum(score == scores[positive] for score in scores.values())
    ranks = range(higher + 1, higher + ties + 1)
    metrics = {"mrr": sum(1 / rank for rank in ranks) / ties}
    for k in KS:
        metrics[f"hr@{k}"] = metrics[f"recall@{k}"] = sum(rank <= k for rank in ranks) / ties
        metrics[f"ndcg@{k}"] = sum(1 / math.log2(rank + 1) for rank in ranks if rank <= k) / ties
    return {prefix + name: value for name, value in metrics.items()}


def wide_model(model: GlobalModel) -> GlobalModel:
    groups = (
        {n: t.double() if t.is_floating_point() else t for n, t in g.items()} for g in (model.trainable, model.frozen)
    )
    return GlobalModel(model.model, *groups)


def oracle(
    model: GlobalModel, cohort: Cohort, positives: NDArray[np.int64], private: Tensors, sampled: int
) -> dict[str, float]:
    sums: dict[str, float] = {"users": float(len(cohort))}
    negatives, valid = sampled_negatives(
        11, cohort.keys, max(sampled, 1), NegativeSampler(ELIGIBLE), positives, cohort.offsets, cohort.items
    )
    for user, positive in enumerate(positives.tolist()):
        history = torch.from_numpy(cohort.part(user, user + 1).items)
        seen = set(history.tolist())
        wide = wide_model(model)
        plain = PlainHistory(history, wide.item_vectors(wide.trainable, history))
        own = {name: tensor[user].double() for name, tensor in private.items()}
        own = model.model.user(wide.trainable, wide.frozen, own, plain)

        def score(item: int, own: Tensors = own, wide: GlobalModel = wide) -> float:
            vector = wide.item_vectors(wide.trainable, torch.tensor([item]))
            shared = model.model.shared(wide.trainable)
            return float(model.model.backbone.score(shared, own, vector, ScoreContext(training=False))[0].float())

        candidates = (set(ELIGIBLE.tolist()) - seen) | {positive}
        metrics = by_hand({item: score(item) for item in candidates}, positive)
        if sampled:
            among = [*negatives[user][valid[user]].tolist(), positive]
            assert set(among) <= candidates
            metrics |= by_hand({item: score(item) for item in among}, positive, f"sampled{sampled}/")
        for name, value in metrics.items():
            sums[name] = sums.get(name, 0.0) + value
    return sums


@pytest.mark.parametrize("embedding", embeddings.names())
@pytest.mark.parametrize("backbone", complete_members("backbone"))
@pytest.mark.parametrize("sampled", [0, 8, 100])
def test_equals_the_oracle(embedding: str, backbone: str, sampled: int) -> None:
    model = global_model(embedding, backbone)
    cohort, positives, private = users([3, 1, 12, 25, 7, 0], backbone=backbone)
    found = rank_users(model, cohort, positives, private, protocol(sampled))
    assert found == pytest.approx(oracle(model, cohort, positives, private, sampled), abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 28), min_size=1, max_size=9),
    numbers=st.integers(1, 60),
    block=st.integers(1, 40),
    seed=st.integers(0, 1000),
    backbone=st.sampled_from(complete_members("backbone")),
)
def test_chunks_of_users_and_items_change_nothing(
    lengths: list[int], numbers: int, block: int, seed: int, backbone: str
) -> None:
    model = global_model(backbone=backbone)
    cohort, positives, private = users(lengths, seed, backbone)
    whole = rank_users(model, cohort, positives, private, protocol(6))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "_NUMBERS_AT_ONCE", numbers)
        patch.setattr(evaluation, "_NUMBERS_IN_CACHE", numbers * model.model.backbone.numbers_per_score)
        patch.setattr(evaluation, "_LEAST_ITEMS", 5)
        patch.setattr(evaluation, "_ITEMS_AT_ONCE", block)
        assert rank_users(model, cohort, positives, private, protocol(6)) == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize("backbone", complete_members("backbone"))
def test_memory_is_bounded_by_what_the_backbone_holds(backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = global_model(backbone=backbone)
    cohort, positives, private = users([3, 1, 12, 25, 7, 0], backbone=backbone)
    member = type(model.model.backbone)
    score = member.score
    held: list[tuple[int, int]] = []

    def spy(self: Backbone, shared: Tensors, own: Tensors, vectors: Tensor, context: ScoreContext) -> Tensor:
        scores: Tensor = score(self, shared, own, vectors, context)
        held.append((len(scores), scores.numel() * self.numbers_per_score))
        return scores

    monkeypatch.setattr(member, "score", spy)
    own = model.model.backbone
    longest = min(25, own.history_length or 25) if own.causal else 0
    states = longest * DIM + own.numbers_per_history(longest)
    limit = max(60 * own.numbers_per_score, 2 * states)
    monkeypatch.setattr(evaluation, "_NUMBERS_AT_ONCE", limit)
    monkeypatch.setattr(evaluation, "_NUMBERS_IN_CACHE", limit)
    rank_users(model, cohort, positives, private, protocol(6))
    assert max(users for users, _ in held) > 1
    assert all(max(numbers, users * states) <= limit for users, numbers in held if users > 1)


@pytest.mark.parametrize("backbone", complete_members("backbone"))
@pytest.mark.parametrize("sampled", [0, 8])
def test_equal_items_tie_wherever_they_stand(backbone: str, sampled: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """30 items of 3 kinds, in blocks of odd sizes, whose products end in other last bits: still whole kinds tie."""
    model = global_model("full", backbone)
    kinds = torch.randn(3, DIM, generator=generator(8))
    kinds[2] = 0.0
    table = kinds[torch.arange(ITEMS) % 3]
    table[::2] *= torch.where(table[::2] == 0, -1.0, 1.0)  # minus zero is zero
    model = GlobalModel(model.model, {**model.trainable, "embedding.items": table}, model.frozen)
    cohort, positives, private = users([3, 1, 12, 25, 7, 0], backbone=backbone)
    expected = oracle(model, cohort, positives, private, sampled)
    for block in (1, 2, 7, 30):
        monkeypatch.setattr(evaluation, "_ITEMS_AT_ONCE", block)
        assert rank_users(model, cohort, positives, private, protocol(sampled)) == pytest.approx(expected, abs=1e-9)


def test_nodes_sums_add_up() -> None:
    model = global_model()
    cohort, positives, private = users([3, 1, 12, 25, 7])
    whole = rank_users(model, cohort, positives, private, protocol(6))
    parts: dict[str, float] = {}
    for start, end in ((0, 2), (2, 5)):
        own = {name: tensor[start:end] for name, tensor in private.items()}
        for name, value in rank_users(model, cohort.part(start, end), positives[start:end], own, protocol(6)).items():
            parts[name] = parts.get(name, 0.0) + value
    assert parts == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize("sampled", [0, 8])
@pytest.mark.parametrize("backbone", complete_members("backbone"))
def test_a_model_that_knows_nothing_gets_k_of_its_candidates(backbone: str, sampled: int) -> None:
    model = global_model(scale=0.0, backbone=backbone)
    cohort, positives, private = users([3, 1, 12], backbone=backbone)
    found = rank_users(model, cohort, positives, private, protocol(sampled))
    candidates = [
        len((set(ELIGIBLE.tolist()) - set(cohort.part(u, u + 1).items.tolist())) | {int(positives[u])})
        for u in range(3)
    ]
    for k in KS:
        assert found[f"hr@{k}"] == pytest.approx(sum(min(1.0, k / count) for count in candidates))
        if sampled:
            assert found[f"sampled8/hr@{k}"] == pytest.approx(3 * min(1.0, k / 9))
    assert found["mrr"] == pytest.approx(sum(sum(1 / r for r in range(1, n + 1)) / n for n in candidates))


def test_a_perfect_model_gets_everything() -> None:
    model = global_model("full")
    cohort, positives, _ = users([3, 1, 12])
    table = torch.zeros(ITEMS, DIM)
    table[positives[1]] = 1.0
    perfect = GlobalModel(model.model, {"embedding.items": table}, {})
    one = {"user": torch.ones(1, DIM)}
    found = rank_users(perfect, cohort.part(1, 2), positives[1:2], one, protocol(8))
    assert all(value == 1.0 for value in found.values())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e200])
@pytest.mark.parametrize("where", ["private", "trained", "frozen"])
def test_a_diverged_model_has_no_rank(bad: float, where: str) -> None:
    model = global_model()
    cohort, positives, private = users([3, 1, 12])
    group: Any = {"private": private, "trained": model.trainable, "frozen": model.frozen}[where]
    name = next(iter(group))
    group[name] = group[name].double()
    group[name][1] = bad
    with pytest.raises(FedrecError, match="the model has diverged"):
        rank_users(model, cohort, positives, private, protocol())


def test_nothing_that_was_given_is_changed() -> None:
    model = global_model()
    cohort, positives, private = users([3, 1, 12])
    groups = (model.trainable, model.frozen, private)
    before = [{name: tensor.clone() for name, tensor in group.items()} for group in groups]
    state = torch.get_rng_state()
    rank_users(model, cohort, positives, private, protocol(8))
    for group, kept in zip(groups, before, strict=True):
        assert all(torch.equal(tensor, kept[name]) for name, tensor in group.items())
    assert torch.equal(torch.get_rng_state(), state)


def test_nobody_to_rank() -> None:
    cohort, positives, private = users([3])
    nobody = cohort.part(0, 0)
    none = {name: tensor[:0] for name, tensor in private.items()}
    assert rank_users(global_model(), nobody, positives[:0], none, protocol(8)) == {}
