"""Recommending: a user's best items, worked out where its history and its private tensors are."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from client_app.answers.evaluation import RankedItems, cast
from client_app.homes.users import Cohort
from client_app.training.engine import GlobalModel
from client_app.training.history import SharedHistory
from fedrec.backbones.base import ScoreContext
from fedrec.core.errors import StoreError
from fedrec.core.tensors import Tensors

_ITEMS_AT_ONCE = 8_192


def best_items(model: GlobalModel, user: Cohort, private: Tensors, eligible: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """The `top` eligible items of the highest score that the user does not know: rows [n], scores [n], best first.

    They are scored as they are when a ranking is measured. Equal scores stand in the order of the catalogue.

    Args:
        model: The global model, in the memory of the processor.
        user: One user and everything it knows.
        private: Its private tensors [1, ...], solved on that.
        eligible: int64 [items], rows that may be recommended, ascending.
        top: How many; fewer if there are not so many.

    Raises StoreError if a score is not finite.
    """
    backbone = model.model.backbone
    wide = GlobalModel(model.model, cast(model.trainable, torch.float64), cast(model.frozen, torch.float64))
    items = RankedItems.of(wide, eligible, torch.zeros(0, dtype=torch.int64), backbone.ranking_dtype)
    shared = cast(model.model.shared(model.trainable), backbone.ranking_dtype)
    history = SharedHistory(user, partial(wide.item_vectors, wide.trainable), model.model.embedding.dim)
    own = cast(private, backbone.ranking_dtype)
    reads = cast(model.model.user(wide.trainable, wide.frozen, own, history), backbone.ranking_dtype)
    context = ScoreContext(training=False)
    parts = [
        backbone.score(shared, reads, block, context).squeeze(0) for block in torch.split(items.vectors, _ITEMS_AT_ONCE)
    ]
    known = torch.isin(eligible, torch.from_numpy(user.items))
    scores, rows = torch.cat(parts).float()[~known], eligible[~known]
    if not torch.isfinite(scores).all():  # a model that diverged must never rank anything
        raise StoreError(
            "the model gives scores that are not finite: its training has diverged; train anew with a lower learning "
            "rate"
        )
    order = torch.argsort(scores, descending=True, stable=True)[:top]
    return rows[order], scores[order]
