"""Ranking on the client: each user's held-out item against the catalogue, returned as sums over users."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client_app.engine import GlobalModel
from client_app.history import SharedHistory
from client_app.users import Cohort
from fedrec.backbones.base import ScoreContext
from fedrec.metrics import (
    RankCounter,
    add_sums,
    metric_sums,
    ranking_metrics,
    sampled_negatives,
    sampled_rank_counts,
)
from fedrec.negatives import NegativeSampler
from fedrec.tensors import Tensors

_SCORES_AT_ONCE = 4_000_000
"""Bounds memory, whatever the number of users or items."""
_ITEMS_AT_ONCE = 16_384


@dataclass(frozen=True)
class RankingProtocol:
    """What is measured: cut-offs, the items that may be recommended, and how many negatives are sampled."""

    ks: tuple[int, ...]
    sampler: NegativeSampler
    sampled_negatives: int
    seed: int

    @cached_property
    def eligible(self) -> Tensor:
        """Rows of the items that may be recommended, ascending."""
        return torch.from_numpy(self.sampler.eligible)


def rank_users(
    model: GlobalModel, cohort: Cohort, positives: NDArray[np.int64], private: Tensors, protocol: RankingProtocol
) -> dict[str, float]:
    """Sums over the users of every metric, by name, and their number as `users`.

    Args:
        model: The global model.
        cohort: The users, each with the history that is no candidate.
        positives: int64 [users], the held-out items.
        private: The users' private tensors [users, ...].
        protocol: What is measured.
    """
    # In float64 throughout, so that equal items get equal scores, whichever users and items are scored beside them.
    model = _double(model)
    vectors = _eligible_vectors(model, protocol.eligible)
    sampled_numbers = protocol.sampled_negatives * vectors.shape[1]
    per_chunk = max(1, _SCORES_AT_ONCE // max(1, min(_ITEMS_AT_ONCE, len(vectors)), sampled_numbers))
    parts = []
    for start in range(0, len(cohort), per_chunk):
        end = min(start + per_chunk, len(cohort))
        own = {name: tensor[start:end].double() for name, tensor in private.items()}
        parts.append(_rank_chunk(model, cohort.part(start, end), positives[start:end], own, vectors, protocol))
    return add_sums(parts)


def _double(model: GlobalModel) -> GlobalModel:
    def wide(tensors: Tensors) -> Tensors:
        return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}

    return GlobalModel(model.model, wide(model.trainable), wide(model.frozen))


def _eligible_vectors(model: GlobalModel, eligible: Tensor) -> Tensor:
    blocks = [model.item_vectors(model.trainable, block) for block in torch.split(eligible, _ITEMS_AT_ONCE)]
    return torch.cat(blocks)


def _rank_chunk(
    model: GlobalModel,
    cohort: Cohort,
    positives: NDArray[np.int64],
    private: Tensors,
    vectors: Tensor,
    protocol: RankingProtocol,
) -> dict[str, float]:
    shared = model.model.shared(model.trainable)
    history = SharedHistory(cohort, partial(model.item_vectors, model.trainable), vectors.shape[1])
    user = model.model.user(model.trainable, model.frozen, private, history)

    def score(item_vectors: Tensor) -> Tensor:
        return model.model.backbone.score(shared, user, item_vectors, ScoreContext(training=False))

    positive = torch.from_numpy(positives)
    positive_scores = score(model.item_vectors(model.trainable, positive[:, None]))[:, 0]
    offsets, seen = torch.from_numpy(cohort.offsets), torch.from_numpy(cohort.items)
    counter = RankCounter(positive, positive_scores, offsets, seen)
    for columns, block in _blocks(protocol.eligible, vectors):
        counter.add(score(block), columns)
    metrics = ranking_metrics(counter.counts(), protocol.ks)
    if n := protocol.sampled_negatives:
        drawn, valid = sampled_negatives(
            protocol.seed, cohort.keys, n, protocol.sampler, positives, cohort.offsets, cohort.items
        )
        scores = score(model.item_vectors(model.trainable, torch.from_numpy(drawn)))
        counts = sampled_rank_counts(positive_scores, scores, torch.from_numpy(valid))
        metrics |= ranking_metrics(counts, protocol.ks, prefix=f"sampled{n}/")
    return metric_sums(metrics)


def _blocks(columns: Tensor, vectors: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(torch.split(columns, _ITEMS_AT_ONCE), torch.split(vectors, _ITEMS_AT_ONCE), strict=True)
