"""Federated matrix factorisation (Chai et al., 2020): a private user vector, shared item vectors, their dot product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Gt, Le
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from fedrec.backbones.base import Advice, Backbone, ScoreContext
from fedrec.backbones.dot import dot
from fedrec.core.bounds import LARGEST_START
from fedrec.core.registry import MemberConfig, backbones
from fedrec.core.rng import counter_normal, derive
from fedrec.core.tensors import Spec, Tensors, TensorSpec


@dataclass(frozen=True)
class FedMFConfig(MemberConfig):
    """Configuration of `fedmf`.

    Attributes:
        init_std: Standard deviation of a user vector's normal start.
    """

    name: Literal["fedmf"]
    init_std: Annotated[float, Gt(0), Le(LARGEST_START)]


@backbones.register("fedmf")
class FedMF(Backbone):
    """Score of item i for user u: the dot product of the private vector of u and the vector of i."""

    config_class = FedMFConfig
    config: FedMFConfig
    advice = Advice(loss="bpr", lr=0.01)

    @property
    @override
    def private(self) -> Spec:
        return {"user": TensorSpec((self.dim,))}

    @override
    def init_private(self, seed: int, keys: NDArray[np.uint64]) -> Tensors:
        draws = counter_normal(derive(seed, "fedmf", "user"), keys[:, None], np.arange(self.dim)[None, :])
        return {"user": torch.from_numpy(draws * self.config.init_std).float()}

    @override
    def direction(self, private: Tensors) -> Tensor | None:
        return private["user"]

    @override
    def score(self, shared: Tensors, private: Tensors, item_vectors: Tensor, context: ScoreContext) -> Tensor:
        return dot(private["user"], item_vectors)
