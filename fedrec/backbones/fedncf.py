"""Federated neural collaborative filtering: a private user vector, and a shared MLP over user and item.

Source: NCF's MLP (He et al., WWW 2017), federated as FedNCF (Perifanis and Efraimidis, Knowledge-Based Systems 2022),
in the size that FedPEFT (arXiv 2512.13734) compares: with 32 numbers a vector its layers are 64-64-128-64-1, with
biases 20,801 numbers: the 83,204 bytes that its MLP [64, 128, 64] adds to every packet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Le, Lt
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from fedrec.backbones.base import Advice, Backbone, ScoreContext
from fedrec.backbones.mlp import Mlp, dropout
from fedrec.core.bounds import LARGEST_START, HiddenWidths
from fedrec.core.registry import MemberConfig, backbones
from fedrec.core.rng import counter_normal, derive
from fedrec.core.tensors import Spec, Tensors, TensorSpec


@dataclass(frozen=True)
class FedNCFConfig(MemberConfig):
    """Configuration of `fedncf`.

    Attributes:
        hidden: Widths of the hidden layers.
        dropout: Share of each hidden layer's activations that training drops (0: none; the papers name none).
        init_std: Standard deviation of a user vector's normal start.
    """

    name: Literal["fedncf"]
    hidden: HiddenWidths
    dropout: Annotated[float, Ge(0), Lt(1)]
    init_std: Annotated[float, Gt(0), Le(LARGEST_START)]


@backbones.register("fedncf")
class FedNCF(Backbone):
    """Score of item i for user u: an MLP over the vector of u, which is private, and that of i; the MLP is averaged."""

    config_class = FedNCFConfig
    config: FedNCFConfig
    advice = Advice(loss="bce", lr=0.001)
    ranking_dtype = torch.float32

    @property
    def _mlp(self) -> Mlp:
        return Mlp({"user": self.dim, "item": self.dim}, self.config.hidden)

    @property
    @override
    def shared(self) -> Spec:
        return self._mlp.spec

    @property
    @override
    def private(self) -> Spec:
        return {"user": TensorSpec((self.dim,))}

    @property
    @override
    def numbers_per_score(self) -> int:
        return self._mlp.numbers_per_score

    @override
    def init_shared(self, rng: torch.Generator) -> Tensors:
        return self._mlp.init(rng)

    @override
    def init_private(self, seed: int, keys: NDArray[np.uint64]) -> Tensors:
        draws = counter_normal(derive(seed, "fedncf", "user"), keys[:, None], np.arange(self.dim)[None, :])
        return {"user": torch.from_numpy(draws * self.config.init_std).float()}

    @override
    def score(self, shared: Tensors, private: Tensors, item_vectors: Tensor, context: ScoreContext) -> Tensor:
        parts = {"user": private["user"].unsqueeze(-2), "item": item_vectors}
        return self._mlp.score(shared, parts, dropout(self.config.dropout, context))
