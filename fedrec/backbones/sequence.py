"""What backbones share that read the order of a history: no private tensors, and states that score by a dot product.

A state is a vector made of the user's latest items, in the space of the item vectors: the table that is read is the
table that is scored. With `item_bias` the last number of an item's vector is its bias: it is added to every score of
the item, and no state reads it.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Le
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from fedrec.backbones.base import Backbone, ItemSequence, ScoreContext
from fedrec.backbones.dot import dot
from fedrec.config.schema import RunConfig
from fedrec.core.bounds import MOST_HISTORY
from fedrec.core.registry import MemberConfig
from fedrec.core.tensors import Spec, Tensors


@dataclass(frozen=True)
class SequenceConfig(MemberConfig):
    """Configuration of every backbone that reads the order.

    Attributes:
        length: Latest items that a state is made of.
        item_bias: Whether the last number of an item's vector is a bias of its score.
    """

    length: Annotated[int, Ge(1), Le(MOST_HISTORY)]
    item_bias: bool


class SequenceBackbone(Backbone):
    """Score of item i after some items: the dot product of their state and the vector of i, and its bias if it has one.

    `width` is how many numbers of a vector are no bias.
    """

    config: Any  # a SequenceConfig
    causal = True

    @classmethod
    def problems(cls, config: RunConfig) -> list[str]:
        """What does not fit together in a configuration, a line each."""
        own, dim = config.backbone, config.base_table.dim
        if getattr(own, "item_bias", False) and dim < 2:
            return [f"backbone.item_bias=true takes one of base_table.dim={dim} numbers: give 2 or more"]
        return []

    @property
    def width(self) -> int:
        """Numbers of a state, and of what it reads of an item's vector."""
        return self.dim - bool(self.config.item_bias)

    @property
    @override
    def private(self) -> Spec:
        return {}

    @property
    @override
    def history_length(self) -> int:
        length: int = self.config.length
        return length

    @override
    def init_private(self, seed: int, keys: NDArray[np.uint64]) -> Tensors:
        return {}

    @override
    def states(
        self, shared: Tensors, private: Tensors, frozen: Tensors, sequence: ItemSequence, context: ScoreContext
    ) -> Tensors:
        vectors = sequence.vectors[..., : self.width]
        states = self.after(shared, vectors, context)
        states = torch.cat([states.new_zeros(*states.shape[:-2], 1, self.width), states], -2)
        if self.config.item_bias:
            states = torch.cat([states, torch.ones_like(states[..., :1])], -1)
        return {"state": states}

    @override
    def score(self, shared: Tensors, private: Tensors, item_vectors: Tensor, context: ScoreContext) -> Tensor:
        return dot(private["state"], item_vectors)

    @abstractmethod
    def after(self, shared: Tensors, vectors: Tensor, context: ScoreContext) -> Tensor:
        """The states [..., n, width] after each of n items, from their vectors [..., n, width]."""
