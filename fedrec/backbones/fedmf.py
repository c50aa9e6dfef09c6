"""Federated matrix factorisation (Chai et al., 2020): a private user vector, shared item vectors, their dot product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Gt, Le
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from fedrec.backbones.base import Advice, Backbone, ScoreContext
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
    def score(self, shared: Tensors, private: Tensors, item_vectors: Tensor, context: ScoreContext) -> Tensor:
        scores: Tensor = _Dot.apply(private["user"], item_vectors)  # type: ignore[no-untyped-call]
        return scores


class _Dot(torch.autograd.Function):
    """Dot products [..., items] of user vectors [..., dim] with item vectors [..., items, dim].

    Its gradient by the item vectors lies in memory as they do. That of the plain matrix product is a transpose, and all
    that comes before it in the backward pass is two to three times slower on it.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(user: Tensor, items: Tensor) -> Tensor:
        # The user as a row: batches of row times matrix are several times faster than of matrix times column.
        return (user.unsqueeze(-2) @ items.transpose(-1, -2)).squeeze(-2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        user, items = ctx.saved_tensors
        by_score = gradients[0]
        by_user = by_items = None
        if ctx.needs_input_grad[0]:
            by_user = (by_score.unsqueeze(-2) @ items).squeeze(-2)
            by_user = by_user.sum_to_size(user.shape)
        if ctx.needs_input_grad[1]:
            by_items = by_score.unsqueeze(-1) * user.unsqueeze(-2)
            by_items = by_items.sum_to_size(items.shape)
        return by_user, by_items
