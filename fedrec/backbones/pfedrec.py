"""PFedRec: no user vector; each user has a scoring head of its own over the shared item vectors.

Source: Zhang et al., "Dual Personalization on Federated Recommendation" (IJCAI 2023): the score function stays on the
device and is trained there together with the item embedding, of which the server averages the updates; a user is
ranked with its own score function. Here in the size that FedPEFT (arXiv 2512.13734) compares, 32 -> 64 -> 32 -> 1.

All users start from one head, a function of the seed (as in the authors' code), and make it their own. So the first
updates of an item add up instead of pulling it towards as many random heads as there are users, and a user who has
never trained solves its head from the one that all the others started from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Lt
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from fedrec.backbones.base import Advice, Backbone, ScoreContext
from fedrec.backbones.mlp import Mlp, dropout
from fedrec.core.bounds import HiddenWidths
from fedrec.core.registry import MemberConfig, backbones
from fedrec.core.rng import generator
from fedrec.core.tensors import Spec, Tensors


@dataclass(frozen=True)
class PFedRecConfig(MemberConfig):
    """Configuration of `pfedrec`.

    Attributes:
        hidden: Widths of the head's hidden layers.
        dropout: Share of each hidden layer's activations that training drops (0: none; the papers name none).
    """

    name: Literal["pfedrec"]
    hidden: HiddenWidths
    dropout: Annotated[float, Ge(0), Lt(1)]


@backbones.register("pfedrec")
class PFedRec(Backbone):
    """Score of item i for user u: the private MLP of u over the vector of i."""

    config_class = PFedRecConfig
    config: PFedRecConfig
    advice = Advice(loss="bce", lr=0.001)
    ranking_dtype = torch.float32
    common_start = True

    @property
    def _head(self) -> Mlp:
        return Mlp({"item": self.dim}, self.config.hidden)

    @property
    @override
    def private(self) -> Spec:
        return self._head.spec

    @property
    @override
    def numbers_per_score(self) -> int:
        return self._head.numbers_per_score

    @override
    def init_private(self, seed: int, keys: NDArray[np.uint64]) -> Tensors:
        head = self._head.init(generator(seed, "pfedrec", "head"))
        return {name: tensor.repeat(len(keys), *[1] * tensor.dim()) for name, tensor in head.items()}

    @override
    def score(self, shared: Tensors, private: Tensors, item_vectors: Tensor, context: ScoreContext) -> Tensor:
        return self._head.score(private, {"item": item_vectors}, dropout(self.config.dropout, context))
