"""Ranking on the client: each user's held-out item against the catalogue, returned as sums over users."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client_app.homes.users import Cohort
from client_app.training.engine import GlobalModel
from client_app.training.history import SharedHistory
from fedrec.backbones.base import ScoreContext
from fedrec.core.tensors import Tensors
from fedrec.data.negatives import NegativeSampler
from fedrec.evaluation.compared_by import curve_metric
from fedrec.evaluation.metrics import (
    RankCounter,
    add_sums,
    metric_sums,
    ranking_metrics,
    sampled_negatives,
    sampled_rank_counts,
)

_NUMBERS_AT_ONCE = 2_000_000
"""Scores, and numbers of histories on the way to them, that are in memory at once: bounds it, whatever the number of
users or items."""
_NUMBERS_IN_CACHE = 2**18
"""What a network holds on the way to scores, worked out at once: its activations stay in the processor's cache."""
_ITEMS_AT_ONCE = 8_192
_LEAST_ITEMS = 256
LEAD, LEAD_SQUARES = "lead", "lead_squares"
"""Sums over users of how far each is ahead of a baseline, and of the squares."""


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
    model: GlobalModel,
    cohort: Cohort,
    positives: NDArray[np.int64],
    private: Tensors,
    protocol: RankingProtocol,
    rival: Tensor | None = None,
) -> dict[str, float]:
    """Sums over the users of every metric, by name, and their number as `users`.

    Args:
        model: The global model.
        cohort: The users, each with the history that is no candidate.
        positives: int64 [users], the held-out items.
        private: The users' private tensors [users, ...].
        protocol: What is measured.
        rival: float64 [users], their results under a baseline, by the metric that models are compared by
            (`curve_metric`); with it there are the sums `lead` and `lead_squares`.
    """
    backbone = model.model.backbone
    others = np.unique(positives[~protocol.sampler.contains(positives)])
    # In float64, so that equal items have equal vectors, whichever items are worked out beside them.
    wide = GlobalModel(model.model, cast(model.trainable, torch.float64), cast(model.frozen, torch.float64))
    items = RankedItems.of(wide, protocol.eligible, torch.from_numpy(others), backbone.ranking_dtype)
    shared = cast(model.model.shared(model.trainable), backbone.ranking_dtype)
    block = min(_ITEMS_AT_ONCE, len(items.eligible))
    sampled = protocol.sampled_negatives * items.vectors.shape[1]
    longest = int(cohort.lengths.max(initial=0))
    read = min(backbone.history_length or longest, longest)
    states = (read * items.vectors.shape[1] if backbone.causal else 0) + backbone.numbers_per_history(read)
    per_chunk = max(1, _NUMBERS_AT_ONCE // max(1, block, sampled, states))
    parts = []
    for start in range(0, len(cohort), per_chunk):
        end = min(start + per_chunk, len(cohort))
        own = cast({name: tensor[start:end] for name, tensor in private.items()}, backbone.ranking_dtype)
        part = cohort.part(start, end)
        history = SharedHistory(part, partial(wide.item_vectors, wide.trainable), model.model.embedding.dim)
        user = cast(model.model.user(wide.trainable, wide.frozen, own, history), backbone.ranking_dtype)
        chunk = _Chunk(model, shared, user, items, torch.from_numpy(positives[start:end]))
        metrics = _rank_chunk(chunk, part, protocol)
        if rival is not None:
            lead = metrics[curve_metric(metrics)] - rival[start:end]
            metrics |= {LEAD: lead, LEAD_SQUARES: lead.square()}
        parts.append(metric_sums(metrics))
    return add_sums(parts)


def cast(tensors: Tensors, dtype: torch.dtype) -> Tensors:
    """Tensors with what is a floating point number in another precision."""
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


@dataclass(frozen=True)
class RankedItems:
    """The vectors of all items that are ranked, worked out once.

    Attributes:
        eligible: Rows of the items that may be recommended, ascending.
        vectors: [rows, dim], of the eligible items and then of held-out ones that are not eligible.
        place: int64 [catalogue rows], where in `vectors` a row's vector is.
        kind: int64 [rows], a number for each distinct vector; None where equal vectors have equal scores anyway.
    """

    eligible: Tensor
    vectors: Tensor
    place: Tensor
    kind: Tensor | None

    @staticmethod
    def of(model: GlobalModel, eligible: Tensor, others: Tensor, dtype: torch.dtype) -> RankedItems:
        """Of the rows `eligible` and `others`, by a model in float64."""
        rows = torch.cat([eligible, others])
        parts = [model.item_vectors(model.trainable, part) for part in torch.split(rows, _ITEMS_AT_ONCE)]
        vectors = torch.cat(parts).to(dtype)
        place = torch.zeros(model.model.embedding.n_items, dtype=torch.int64)
        place[rows] = torch.arange(len(rows))
        return RankedItems(eligible, vectors, place, None if dtype == torch.float64 else _kinds(vectors))


def _kinds(vectors: Tensor) -> Tensor | None:
    """A number for each distinct row, or None if all are distinct."""
    rows = (vectors + 0.0).numpy()  # minus zero becomes zero, which it equals
    _, kind = np.unique(rows.view(f"V{rows.itemsize * rows.shape[1]}").ravel(), return_inverse=True)
    return torch.from_numpy(kind) if len(kind) and kind.max() + 1 < len(kind) else None


@dataclass(frozen=True)
class _Chunk:
    """Some users, who are ranked at once."""

    model: GlobalModel
    shared: Tensors
    private: Tensors
    items: RankedItems
    positives: Tensor

    @cached_property
    def positive_scores(self) -> Tensor:
        """[users]."""
        return self._score(self.items.vectors[self.items.place[self.positives]].unsqueeze(1)).squeeze(1)

    def scores(self, places: Tensor | slice) -> Tensor:
        """Scores [users, items] of what stands at `places` of the list of vectors: [users, items], or a slice.

        Scores are compared as float32, and a product sums in another order at the edges of a block. In float64 that is
        rounded away; below it an item with the vector of the user's held-out one is given its very score, so that no
        tie hangs on the last bit.
        """
        scores = self._score(self.items.vectors[places])
        kind = self.items.kind
        if kind is None:
            return scores
        twins = kind[places] == kind[self.items.place[self.positives]].unsqueeze(1)
        return torch.where(twins, self.positive_scores.unsqueeze(1), scores)

    def _score(self, vectors: Tensor) -> Tensor:
        """Scores [users, items] of vectors [items, dim], the same for all, or [users, items, dim].

        Worked out a few users and items at a time if a score takes a network.
        """
        backbone, context = self.model.model.backbone, ScoreContext(training=False)
        if backbone.numbers_per_score == 1:
            return backbone.score(self.shared, self.private, vectors, context)
        at_once = _NUMBERS_IN_CACHE // backbone.numbers_per_score
        width = min(vectors.shape[-2], max(_LEAST_ITEMS, at_once))
        several = max(1, at_once // width)
        scores = vectors.new_empty(len(self.positives), vectors.shape[-2])
        for start in range(0, len(scores), several):
            users = slice(start, start + several)
            own = {name: tensor[users] for name, tensor in self.private.items()}
            of_users = vectors[users] if vectors.ndim == 3 else vectors
            for first in range(0, scores.shape[1], width):
                part = slice(first, first + width)
                scores[users, part] = backbone.score(self.shared, own, of_users[..., part, :], context)
        return scores


def _rank_chunk(chunk: _Chunk, cohort: Cohort, protocol: RankingProtocol) -> dict[str, Tensor]:
    """Each user's metrics."""
    offsets, seen = torch.from_numpy(cohort.offsets), torch.from_numpy(cohort.items)
    counter = RankCounter(chunk.positives, chunk.positive_scores, offsets, seen)
    eligible = chunk.items.eligible
    for start in range(0, len(eligible), _ITEMS_AT_ONCE):
        block = slice(start, min(start + _ITEMS_AT_ONCE, len(eligible)))
        counter.add(chunk.scores(block), eligible[block])
    metrics = ranking_metrics(counter.counts(), protocol.ks)
    if n := protocol.sampled_negatives:
        drawn, valid = sampled_negatives(
            protocol.seed, cohort.keys, n, protocol.sampler, chunk.positives.numpy(), cohort.offsets, cohort.items
        )
        scores = chunk.scores(chunk.items.place[torch.from_numpy(drawn)])
        counts = sampled_rank_counts(chunk.positive_scores, scores, torch.from_numpy(valid))
        metrics |= ranking_metrics(counts, protocol.ks, prefix=f"sampled{n}/")
    return metrics
