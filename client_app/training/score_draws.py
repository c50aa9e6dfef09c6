"""What scores draw while users train, by the place of an item among all that its user scores in a step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client_app.training.segments import Segments
from fedrec.backbones.base import Uniform
from fedrec.core.rng import counter_uniform, derive
from fedrec.optim.base import Recipe


def uniform_of(
    layout: Segments,
    recipe: Recipe,
    keys: NDArray[np.uint64],
    seed: int,
    step: int,
    negative: bool,
    like: Tensor,
    shape: Sequence[int] | None = None,
) -> Uniform:
    """Draws for the items of a place, as the contract of `ScoreContext` has them.

    Each of a user's contexts has its own, also for items that all of them are set against.

    Args:
        layout: How the items are laid out.
        recipe: Says how many negatives there are, and whose.
        keys: uint64 [histories].
        seed: Secret seed of the round.
        step: Number of the step.
        negative: Whether these are negatives.
        like: Has the draws' type and device.
        shape: Leading dimensions of the draws, if not those of the layout.
    """

    def uniform(name: str, width: int) -> Tensor:
        pairs, of_whom = layout.pairs.cpu().numpy(), keys[layout.history.cpu().numpy()]
        if len(pairs) < len(keys):
            pairs, of_whom = pairs[:1], keys
        items = item_places(pairs, recipe, negative=negative).reshape(len(pairs), -1, 1)
        at = of_whom[:, None, None], step, items, np.arange(width)
        values = torch.from_numpy(counter_uniform(derive(seed, "score", name), *at)).to(like)
        return values if shape is None else values.reshape(*shape, width)

    return uniform


def item_places(pairs: NDArray[np.int64], recipe: Recipe, negative: bool) -> NDArray[np.int64]:
    """The place of items among all that a user scores in a step: [..., pairs] as [..., pairs, 1 or q].

    Each positive comes before its negatives; negatives that a user's positives share come before all of them.
    """
    q = recipe.negatives
    column = np.arange(q) if negative else np.zeros(1, dtype=np.int64)
    if recipe.shared_negatives:
        return pairs[..., None] + column + (0 if negative else q)
    return pairs[..., None] * (1 + q) + column + (1 if negative else 0)
