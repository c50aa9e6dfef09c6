"""The server's own step as a few actions: each row of a table moves by one of K vectors, or not at all.

Source: FedRAS (arXiv 2507.08842, KDD 2025) sends gradients so, up; that the way down is coded alike is our reading
(docs/fedras.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Le
from torch import Tensor
from typing_extensions import override

from fedrec.codecs.actions import MOST_ACTIONS, ActionCodec
from fedrec.codecs.rounding import tensor_seed
from fedrec.core.bounds import MOST_ROUNDS
from fedrec.core.registry import MemberConfig, downlinks
from fedrec.core.tensors import Tensors
from fedrec.downlinks.base import Downlink
from fedrec.stages.contributions import Touched
from fedrec.uplinks.clusters import of_rows
from fedrec.uplinks.padded import Padded


@dataclass(frozen=True)
class ActionsConfig(MemberConfig):
    """Configuration of `actions`.

    Attributes:
        actions: How many there are for each table of a step (K), with that of not moving.
        every: Rounds between two steps. Where few users are chosen in a round, each misses many steps until it is
            chosen again: fewer and longer ones are then fewer bytes, for tables that are a little older.
    """

    name: Literal["actions"]
    actions: Annotated[int, Ge(2), Le(MOST_ACTIONS)]
    every: Annotated[int, Ge(1), Le(MOST_ROUNDS)]


@downlinks.register("actions")
class ActionsDownlink(Downlink):
    """Steps of K actions for each table, and which row takes which."""

    config_class = ActionsConfig
    config: ActionsConfig

    @property
    @override
    def every(self) -> int:
        return self.config.every

    @property
    @override
    def packet(self) -> ActionCodec:
        return ActionCodec(self.codec, self.config.actions)

    @override
    def coded(self, change: Tensors, seed: int) -> Tensors:
        return {name: self._of_table(table, np.atleast_1d(tensor_seed(seed, name))) for name, table in change.items()}

    def _of_table(self, table: Tensor, seed: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> Tensor:
        rows = torch.nonzero((table != 0).any(1)).flatten()
        moved = torch.zeros_like(table)
        if len(rows):
            given = Padded.of(Touched(torch.zeros_like(rows), rows, table[rows]), 1)
            clusters = of_rows(given, torch.tensor([self.config.actions]), seed)
            actions = torch.nn.functional.pad(clusters.centres[0], (0, 0, 1, 0))
            moved[rows] = actions[clusters.taken[0]]
        return moved
