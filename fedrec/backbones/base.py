"""The contract of a backbone: it scores items for one user, and says which of its tensors are private."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedrec.registry import MemberConfig
from fedrec.tensors import Spec, Tensors

Uniform = Callable[[str, int], Tensor]
"""`uniform(name, width)`: independent uniform numbers [..., items, width] in [0, 1), others for every name."""


@dataclass(frozen=True)
class Advice:
    """How the paper of a backbone trains it: what a recipe takes where it is told to follow the backbone.

    Attributes:
        loss: Of `fedrec.optim.losses`.
        lr: Learning rate of the clients' Adam.
    """

    loss: Literal["bpr", "bce"]
    lr: float


@dataclass(frozen=True)
class ScoreContext:
    """What a score may depend on beside tensors.

    Attributes:
        training: Whether it is for training (dropout is on) or for ranking.
        uniform: Randomness of the score, only while training. A number is a function of the round's secret seed, the
            user, the step and the place of the item among all that the user scores in the step, never of the layout.
    """

    training: bool
    uniform: Uniform | None = None


class Backbone(ABC):
    """A member of the family `backbone`, for item vectors of `dim` numbers.

    `shared` tensors are averaged over users and cross the network; `private` ones never leave the user's device.
    """

    config_class: ClassVar[type[MemberConfig]]

    advice: ClassVar[Advice]

    common_start: ClassVar[bool] = False
    """Whether all users start from the same private tensors, and not each from its own."""

    ranking_dtype: ClassVar[torch.dtype] = torch.float64
    """In what users are ranked. float64 frees ranks of rounding; float32 does for a network, which takes five times as
    long in float64, and whose numbers were trained in float32 anyway."""

    def __init__(self, config: Any, dim: int) -> None:
        self.config = config
        self.dim = dim

    @property
    def shared(self) -> Spec:
        """Specification of the shared tensors."""
        return {}

    @property
    @abstractmethod
    def private(self) -> Spec:
        """Specification of one user's private tensors."""

    @property
    def numbers_per_score(self) -> int:
        """Numbers that `score` holds at once for each score: what bounds how many are worked out together."""
        return 1

    def init_shared(self, rng: torch.Generator) -> Tensors:
        """Initial shared tensors."""
        return {}

    @abstractmethod
    def init_private(self, seed: int, keys: NDArray[np.uint64]) -> Tensors:
        """Initial private tensors of the users `keys`: [users, ...], a function of seed and key alone.

        With `common_start` they are a function of the seed, the same for every key.
        """

    @abstractmethod
    def score(self, shared: Tensors, private: Tensors, item_vectors: Tensor, context: ScoreContext) -> Tensor:
        """Scores [..., items] of item vectors [..., items, dim]; the leading dimension, if any, is the user's."""
