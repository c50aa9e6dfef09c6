"""The cohort engine: all chosen users of a node train at once, in one forward and backward pass.

While they train locally, the users of a round share no trainable state. So every user gets private copies of just the
rows it touches (unique pairs of user and row) and of the small dense tensors, and the sum of the users' losses then has
each user's own gradient in each user's own copies. Element-wise optimisers do not move a row whose gradient has
always been zero, so leaving out the rows that a user never touches changes nothing: the result equals one-by-one
training (`client_app.oracle`). A single user is a cohort of one.

Histories are cut into segments of equal length, a few to a user, so that users of very different activity share one
rectangular batch with little padding, and a backbone sees an ordinary leading dimension.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from client_app.engine import Engine, GlobalModel, Trained
from client_app.users import Cohort
from fedrec.backbones.base import ScoreContext
from fedrec.optim.base import LocalStep
from fedrec.optim.local import LocalState
from fedrec.tensors import Tensors
from fedrec.updates import NodeUpdate

_LONGEST_SEGMENT = 64


@dataclass(frozen=True)
class Batch:
    """The pairs of some users, cut into segments of equal length.

    Attributes:
        cohort: The users.
        owner: int64 [segments], the user of each segment.
        mask: [segments, length], 1.0 for a pair and 0.0 for padding.
        share: [segments], the part of its user's pairs that a segment holds.
        place: int64 [pairs], where each pair stands in the flattened [segments, length].
    """

    cohort: Cohort
    owner: Tensor
    mask: Tensor
    share: Tensor
    place: NDArray[np.int64]

    @staticmethod
    def of(cohort: Cohort, dtype: torch.dtype) -> Batch:
        """Cut the users' histories into segments."""
        lengths = np.diff(cohort.offsets)
        length = int(np.clip(lengths.mean(), 1, _LONGEST_SEGMENT))
        segments = -(-lengths // length)
        first = np.cumsum(segments) - segments
        position = np.arange(len(cohort.items)) - np.repeat(cohort.offsets[:-1], lengths)
        place = np.repeat(first, lengths) * length + position
        owner = np.repeat(np.arange(len(cohort)), segments)
        mask = np.zeros(len(owner) * length)
        mask[place] = 1.0
        mask = mask.reshape(len(owner), length)
        share = mask.sum(1) / lengths[owner]
        return Batch(cohort, torch.from_numpy(owner), torch.from_numpy(mask).to(dtype), torch.from_numpy(share).to(dtype), place)

    def fill(self, items: NDArray[np.int64]) -> NDArray[np.int64]:
        """Items [pairs, w] as [segments, length, w]; padding repeats a user's own first item, so it adds no row."""
        first = items[self.cohort.offsets[:-1], 0]
        filled = np.repeat(first[self.owner.numpy()], self.mask.shape[1])[:, None].repeat(items.shape[1], axis=1)
        filled[self.place] = items
        return filled.reshape(*self.mask.shape, items.shape[1])
