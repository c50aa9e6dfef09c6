"""The paper's recipe with separate clients: each runs a fresh Adam on everything, the server averages.

Source: FedPEFT (arXiv 2512.13734): BPR (BCE where the backbone says so), Adam at 1e-2 for FedMF and 1e-3 for the other
backbones, 2 local epochs, 10 % of clients a round, FedAvg. The published code shares one Adam state between all
clients; here every user starts its own, every round. One local epoch is one full-batch step over the user's history.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le
from torch import Tensor
from typing_extensions import override

from fedrec.core.bounds import LARGEST_RATE, MOST_NEGATIVES, MOST_STEPS
from fedrec.core.registry import MemberConfig, optims
from fedrec.core.space import Real, Space, Whole
from fedrec.core.tensors import Tensors
from fedrec.optim.base import Adam, LocalStep, Recipe
from fedrec.optim.losses import LOSSES

_ROOM = 1.001
"""For the rounding of float32."""


@dataclass(frozen=True)
class PaperConfig(MemberConfig):
    """Configuration of `paper`.

    Attributes:
        loss: `bpr`, `bce`, or what the `backbone`'s own paper takes.
        lr: Learning rate of the local Adam, or that of the `backbone`'s own paper.
        local_epochs: Full-batch steps over the user's history in a round.
        negatives: Negatives per positive, drawn afresh in every local epoch.
        solve_epochs: Steps on the private tensors alone before a user is ranked (items fixed; not sent, not kept).
    """

    name: Literal["paper"]
    loss: Literal["backbone", "bpr", "bce"]
    lr: Annotated[float, Gt(0), Le(LARGEST_RATE)] | Literal["backbone"]
    local_epochs: Annotated[int, Ge(1), Le(MOST_STEPS)]
    negatives: Annotated[int, Ge(1), Le(MOST_NEGATIVES)]
    solve_epochs: Annotated[int, Ge(0), Le(MOST_STEPS)]


@optims.register("paper")
class PaperRecipe(Recipe):
    """Fresh local Adam on private and shared tensors together; FedAvg."""

    config_class = PaperConfig
    space: ClassVar[Space] = {
        "lr": Real(1e-4, 1.0, log=True),
        "local_epochs": Whole(1, 5),
        "negatives": Whole(1, 20, log=True),
        "solve_epochs": Whole(0, 40),
    }
    config: PaperConfig

    @property
    @override
    def negatives(self) -> int:
        return self.config.negatives

    @property
    def _adam(self) -> Adam:
        return Adam(self.advice.lr if self.config.lr == "backbone" else self.config.lr)

    @override
    def local_steps(self) -> Sequence[LocalStep]:
        return [LocalStep(private=True, shared=True, optimiser=self._adam)] * self.config.local_epochs

    @override
    def solve_steps(self) -> Sequence[LocalStep]:
        return [LocalStep(private=True, shared=False, optimiser=self._adam)] * self.config.solve_epochs

    @override
    def loss(self, positive: Tensor, negative: Tensor, mask: Tensor) -> Tensor:
        name = self.advice.loss if self.config.loss == "backbone" else self.config.loss
        return LOSSES[name](positive, negative, mask)

    @override
    def row_reach(self, width: int) -> float:
        # Adam moves every number about as far, whatever the loss, the backbone and what the row belongs to.
        return _ROOM * math.sqrt(width) * self._adam.reach(self.config.local_epochs)

    @override
    def server_update(self, model: Tensors, mean_delta: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        return {name: tensor + mean_delta[name] for name, tensor in model.items()}, state
