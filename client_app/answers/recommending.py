"""Recommending: users' best items, worked out where their histories and their private tensors are."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client_app.answers.evaluation import RankedItems, cast
from client_app.homes.users import Cohort
from client_app.stores.frozen import MissingFrozenError
from client_app.training.engine import GlobalModel, all_finite
from client_app.training.history import SharedHistory
from fedrec.backbones.base import ScoreContext
from fedrec.core.errors import StoreError
from fedrec.core.rng import derive
from fedrec.core.tensors import Tensors

if TYPE_CHECKING:
    from client_app.answers.node import Node, Received

NOTHING = -1
"""In the place of a row where a user has no item left to recommend."""
_NUMBERS_AT_ONCE = 2_000_000
"""Scores, with what a backbone holds on the way to them, that are in memory at once."""
_ITEMS_AT_ONCE = 8_192


class Recommended(NamedTuple):
    """Items for some users, best first.

    Attributes:
        rows: int64 [users, top], rows of the catalogue; `NOTHING` after a user's last.
        scores: float32 [users, top]. `top` is at most the number of items.
        trained: bool [users], who has ever trained.
        sane: bool [users], whose private tensors are finite; the others are recommended nothing.
    """

    rows: Tensor
    scores: Tensor
    trained: NDArray[np.bool_]
    sane: NDArray[np.bool_]


def recommend(node: Node, received: Received, users: Cohort, top: int, of: str = "recommend") -> Recommended:
    """The best items for users of a node, whose private tensors are first solved on everything that they know.

    These are started as for anybody who comes new if a user has none; the result of solving is not kept. What a user
    is recommended does not depend on who else is asked for. With the history that `held_out` gives and `of="test"` the
    lists are those of the ranking at test, to the draw.

    Raises StoreError if the list of items is missing, or a score is not finite.
    """
    try:
        eligible = torch.from_numpy(node.sampler.eligible)
    except MissingFrozenError as error:
        raise StoreError(
            f"the list of items that may be recommended ({error}) is missing or damaged in this state-dir: the "
            "next message of a run brings it again"
        ) from error
    solved = solve(node, received, users, of)
    there, top = np.flatnonzero(solved.sane), min(top, len(eligible))
    rows, scores = torch.full((len(users), top), NOTHING), torch.full((len(users), top), -torch.inf)
    if len(there):
        found = best_items(received.model.cpu(), users.select(there), solved.private, eligible, top)
        rows[torch.from_numpy(there)], scores[torch.from_numpy(there)] = found
    return Recommended(rows, scores, solved.trained, solved.sane)


class Solved(NamedTuple):
    """Users as they are recommended to.

    Attributes:
        private: The private tensors [sane users, ...], solved on all that these know.
        trained: bool [users], who has ever trained.
        sane: bool [users], whose private tensors are finite.
    """

    private: Tensors
    trained: NDArray[np.bool_]
    sane: NDArray[np.bool_]


def solve(node: Node, received: Received, users: Cohort, of: str = "recommend") -> Solved:
    """What is private of users of a node, solved on everything that they know; nothing of it is kept."""
    private, trained = node.starts(users.keys, before=received.round + 1)
    sane: NDArray[np.bool_] = all_finite(private, len(users)).numpy()
    there = np.flatnonzero(sane)
    own = {name: tensor[torch.from_numpy(there)] for name, tensor in private.items()}
    if len(there):
        seed = derive(node.secret, "solve", of, received.round)
        own = node.engine.solve(received.model.cpu(), users.select(there), own, seed)
    return Solved(own, trained, sane)


def read_by_score(model: GlobalModel, users: Cohort, private: Tensors) -> Tensors:
    """What the backbone's score reads of users [users, ...], in the type in which users are ranked.

    Args:
        model: The global model, in the memory of the processor.
        users: Users and everything they know.
        private: Their private tensors [users, ...], solved on that.
    """
    return _read(_wide(model), users, cast(private, model.model.backbone.ranking_dtype))


def _wide(model: GlobalModel) -> GlobalModel:
    return GlobalModel(model.model, cast(model.trainable, torch.float64), cast(model.frozen, torch.float64))


def _read(wide: GlobalModel, users: Cohort, private: Tensors) -> Tensors:
    model = wide.model
    history = SharedHistory(users, partial(wide.item_vectors, wide.trainable), model.embedding.dim)
    return cast(model.user(wide.trainable, wide.frozen, private, history), model.backbone.ranking_dtype)


def best_items(
    model: GlobalModel, cohort: Cohort, private: Tensors, eligible: Tensor, top: int
) -> tuple[Tensor, Tensor]:
    """Of each user the `top` eligible items of the highest score that it does not know, best first.

    They are scored as they are when a ranking is measured. Equal scores stand in the order of the catalogue.

    Args:
        model: The global model, in the memory of the processor.
        cohort: Users and everything they know.
        private: Their private tensors [users, ...], solved on that.
        eligible: int64 [items], rows that may be recommended, ascending.
        top: How many, at most as many as there are.

    Returns:
        Rows, int64 [users, top], `NOTHING` where a user has fewer left, and scores, float32 [users, top].

    Raises StoreError if a score is not finite.
    """
    backbone = model.model.backbone
    wide = _wide(model)
    items = RankedItems.of(wide, eligible, torch.zeros(0, dtype=torch.int64), backbone.ranking_dtype)
    shared = cast(model.model.shared(model.trainable), backbone.ranking_dtype)
    longest = int(cohort.lengths.max(initial=0))
    read = min(backbone.history_length or longest, longest)
    states = (read * items.vectors.shape[1] if backbone.causal else 0) + backbone.numbers_per_history(read)
    block = min(_ITEMS_AT_ONCE, len(eligible)) * backbone.numbers_per_score
    per_chunk = max(1, _NUMBERS_AT_ONCE // max(1, len(eligible), block, states))
    parts = []
    for start in range(0, len(cohort), per_chunk):
        end = min(start + per_chunk, len(cohort))
        part = cohort.part(start, end)
        own = cast({name: tensor[start:end] for name, tensor in private.items()}, backbone.ranking_dtype)
        reads = _read(wide, part, own)
        context = ScoreContext(training=False)
        blocks = torch.split(items.vectors, _ITEMS_AT_ONCE)
        scores = torch.cat([backbone.score(shared, reads, block, context) for block in blocks], 1).float()
        parts.append(_best(scores, _known(part, eligible), eligible, top))
    return torch.cat([rows for rows, _ in parts]), torch.cat([scores for _, scores in parts])


def _known(cohort: Cohort, eligible: Tensor) -> Tensor:
    """Bool [users, items], which eligible items a user knows."""
    items = torch.from_numpy(cohort.items)
    place = torch.searchsorted(eligible, items).clamp(max=len(eligible) - 1)
    here = eligible[place] == items
    owner = torch.from_numpy(np.repeat(np.arange(len(cohort)), cohort.lengths))
    known = torch.zeros(len(cohort), len(eligible), dtype=torch.bool)
    known[owner[here], place[here]] = True
    return known


def _best(scores: Tensor, known: Tensor, eligible: Tensor, top: int) -> tuple[Tensor, Tensor]:
    if not torch.isfinite(scores[~known]).all():  # a model that diverged must never rank anything
        raise StoreError(
            "the model gives scores that are not finite: its training has diverged; train anew with a lower learning "
            "rate"
        )
    scores = scores.masked_fill(known, -torch.inf)
    least = scores.topk(top, dim=1).values[:, -1:]
    # Of items that score just as much as the last one only the first of the catalogue are taken.
    above, equal = scores > least, scores == least
    left = top - above.sum(1, keepdim=True)
    taken = torch.nonzero(above | (equal & (equal.cumsum(1) <= left)))[:, 1].view(len(scores), top)
    found, order = scores.gather(1, taken).sort(dim=1, descending=True, stable=True)
    return torch.where(found == -torch.inf, NOTHING, eligible[taken.gather(1, order)]), found
