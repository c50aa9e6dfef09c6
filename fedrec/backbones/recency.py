"""Learned means of the latest items: tiny, plain, and the one for short histories.

Each of some means has a weight for every distance, which starts as a half-life and is then learned as it comes. Their
sum is the state. With `maps` each mean goes through a matrix of its own first, which starts as an even share of the
identity: several half-lives may then speak of several things. One mean over 50 items has 51 shared numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Gt, Le, MaxLen, MinLen
from pydantic import Strict
from torch import Tensor
from typing_extensions import override

from fedrec.backbones.base import Advice, ScoreContext
from fedrec.backbones.decay import decaying_means, half_lives
from fedrec.backbones.sequence import SequenceBackbone, SequenceConfig
from fedrec.core.bounds import LONGEST_HALF_LIFE, MOST_LAYERS
from fedrec.core.registry import backbones
from fedrec.core.space import OneOf, Space, Whole
from fedrec.core.tensors import Spec, Tensors, TensorSpec


@dataclass(frozen=True)
class RecencyConfig(SequenceConfig):
    """Configuration of `recency`.

    Attributes:
        half_lives: Of each mean, the items after which a weight is half as large at the start.
        maps: Whether each mean has a matrix of its own.
    """

    name: Literal["recency"]
    half_lives: Annotated[
        tuple[Annotated[float, Gt(0), Le(LONGEST_HALF_LIFE)], ...], Strict(False), MinLen(1), MaxLen(MOST_LAYERS)
    ]
    maps: bool


@backbones.register("recency")
class Recency(SequenceBackbone):
    """State: the sum of learned means of the latest items, each mapped or not, times one learned number."""

    config_class = RecencyConfig
    space: ClassVar[Space] = {"length": Whole(5, 100, log=True), "item_bias": OneOf((False, True))}
    config: RecencyConfig
    advice = Advice(loss="bce", lr=0.001)

    @property
    @override
    def shared(self) -> Spec:
        means = len(self.config.half_lives)
        spec = {"decay": TensorSpec((means, self.config.length)), "scale": TensorSpec((1,))}
        return spec | ({"map": TensorSpec((means, self.width, self.width))} if self.config.maps else {})

    @override
    def numbers_per_history(self, length: int) -> int:
        return len(self.config.half_lives) * length * (2 * length + self.width)

    @override
    def init_shared(self, rng: torch.Generator) -> Tensors:
        means = len(self.config.half_lives)
        made = {"decay": half_lives(self.config.half_lives, self.config.length), "scale": torch.zeros(1)}
        return made | ({"map": torch.eye(self.width).repeat(means, 1, 1) / means} if self.config.maps else {})

    @override
    def after(self, shared: Tensors, vectors: Tensor, context: ScoreContext) -> Tensor:
        means = decaying_means(shared["decay"], vectors)
        if self.config.maps:
            means = means @ shared["map"]
        return means.sum(-3) * shared["scale"].exp().unsqueeze(-1)
