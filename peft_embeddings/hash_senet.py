"""Hashed vectors whose h rows are weighed by a small shared network (P-Hash and C-Hash with SENet weights).

Source: FedPEFT (arXiv 2512.13734), after squeeze-and-excitation networks (Hu, Shen and Sun, CVPR 2018) as FiBiNET
(Huang, Zhang and Zhang, RecSys 2019) uses them on embeddings. With v_1..v_h an item's rows and s_j the mean of v_j,

    c_i = sum_j w_j v_j,   w = sigmoid(W2 relu(W1 s)),   W1: h -> 16 h, W2: 16 h -> h, without biases.

Here they act on row vectors: W1 is [h, 16 h], W2 [16 h, h]; both are trained and sent whole. In variant P the rows
start at zero: all weights are 1/2, only the rows have a gradient, and once they have moved, so has the network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor
from typing_extensions import override

from fedrec.core.registry import embeddings
from fedrec.core.tensors import Tensors, TensorSpec
from peft_embeddings.hashing import HashedConfig, HashedEmbedding


@dataclass(frozen=True)
class HashSenetConfig(HashedConfig):
    """Configuration of `hash_senet`.

    Attributes:
        expansion: Hidden units of the network for each hash function; 16 in the paper.
    """

    name: Literal["hash_senet"]
    expansion: Annotated[int, Ge(1), Le(1024)]


@embeddings.register("hash_senet")
class HashSenetEmbedding(HashedEmbedding):
    """`c_i` is the sum of h rows, each times a weight in (0, 1)."""

    config_class = HashSenetConfig
    config: HashSenetConfig
    ordered = True

    @property
    @override
    def dense(self) -> Mapping[str, TensorSpec]:
        functions, hidden = self.config.functions, self.config.functions * self.config.expansion
        return {"W1": TensorSpec((functions, hidden)), "W2": TensorSpec((hidden, functions))}

    @override
    def init(self, base: Tensor, rng: torch.Generator) -> Tensors:
        made = super().init(base, rng)
        # He et al. (2015) before the ReLU, Glorot and Bengio's scale (2010) before the sigmoid.
        for name, gain in (("W1", 2.0), ("W2", 1.0)):
            shape = self.dense[name].shape
            made[name] = torch.randn(shape, generator=rng) * math.sqrt(gain / shape[0])
        return made

    @override
    def random_std(self, length: float) -> float:
        return 2 * length / math.sqrt(self.config.functions * self.dim)  # weights are about 1/2

    @override
    def compressed(self, rows: Tensors, dense: Tensors, frozen: Tensors) -> Tensor:
        values = rows["rows"]
        hidden = (values.mean(-1) @ dense["W1"]).relu()
        weights = (hidden @ dense["W2"]).sigmoid()
        return (weights.unsqueeze(-1) * values).sum(-2)
