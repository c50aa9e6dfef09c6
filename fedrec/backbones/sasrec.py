"""Self-attention over the latest items, after SASRec (Kang and McAuley, ICDM 2018), in a small and careful form.

Blocks are pre-norm (Xiong et al., ICML 2020) with RMS norms (Zhang and Sennrich, NeurIPS 2019). Instead of embeddings
of positions each head has a learned bias for every distance, which starts as ALiBi (Press et al., ICLR 2022). What a
block adds starts at zero: the projections out of attention and feed-forward do. Beside the blocks stands one learned
decaying mean of the items, so that the first state already recommends what is like the latest items.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor
from torch.nn.functional import gelu
from typing_extensions import override

from fedrec.backbones.base import Advice, ScoreContext
from fedrec.backbones.decay import by_distance, decaying_means, distances, half_lives
from fedrec.backbones.mlp import dropout
from fedrec.backbones.sequence import SequenceBackbone, SequenceConfig
from fedrec.config.schema import RunConfig
from fedrec.core.bounds import LONGEST_HALF_LIFE, MOST_LAYERS, MOST_WIDTH
from fedrec.core.registry import backbones
from fedrec.core.space import Real, Space, Whole
from fedrec.core.tensors import Spec, Tensors, TensorSpec

_EPSILON = 1e-6


@dataclass(frozen=True)
class SASRecConfig(SequenceConfig):
    """Configuration of `sasrec`.

    Attributes:
        blocks: Blocks of attention and feed-forward.
        heads: Heads of the attention; they share the numbers of a vector.
        widening: Width of the feed-forward's hidden layer, in widths of a vector.
        dropout: Share of the activations that training drops: of the input, and of what each block adds.
        half_life: Of the mean beside the blocks, the items after which a weight is half as large at the start.
    """

    name: Literal["sasrec"]
    blocks: Annotated[int, Ge(1), Le(MOST_LAYERS)]
    heads: Annotated[int, Ge(1), Le(MOST_WIDTH)]
    widening: Annotated[int, Ge(1), Le(MOST_WIDTH)]
    dropout: Annotated[float, Ge(0), Lt(1)]
    half_life: Annotated[float, Gt(0), Le(LONGEST_HALF_LIFE)]


@backbones.register("sasrec")
class SASRec(SequenceBackbone):
    """State: causal self-attention over the latest items, plus their learned decaying mean."""

    config_class = SASRecConfig
    space: ClassVar[Space] = {
        "length": Whole(5, 100, log=True),
        "blocks": Whole(1, 2),
        "dropout": Real(0.0, 0.5),
        "half_life": Real(0.5, 8.0, log=True),
    }
    config: SASRecConfig
    advice = Advice(loss="bce", lr=0.001)

    @classmethod
    @override
    def problems(cls, config: RunConfig) -> list[str]:
        own, dim = config.backbone, config.base_table.dim
        assert isinstance(own, SASRecConfig)
        width = dim - own.item_bias
        if width % own.heads == 0:
            return super().problems(config)
        less = f" less one for backbone.item_bias, which is {width}," if own.item_bias else ""
        return [
            *super().problems(config),
            f"backbone.heads={own.heads} share the numbers of a vector evenly: base_table.dim={dim}{less} must be a "
            f"multiple of {own.heads}",
        ]

    @property
    @override
    def shared(self) -> Spec:
        d, own = self.width, self.config
        spec = {"decay": TensorSpec((1, own.length)), "mean": TensorSpec((1,)), "scale": TensorSpec((1,))}
        spec["norm"] = TensorSpec((d,))
        for block in self._blocks():
            spec |= {
                f"{block}.norm1": TensorSpec((d,)),
                f"{block}.qkv": TensorSpec((d, 3 * d)),
                f"{block}.distance": TensorSpec((own.heads, own.length)),
                f"{block}.out": TensorSpec((d, d)),
                f"{block}.norm2": TensorSpec((d,)),
                f"{block}.widen": TensorSpec((d, own.widening * d)),
                f"{block}.bias": TensorSpec((own.widening * d,)),
                f"{block}.narrow": TensorSpec((own.widening * d, d)),
            }
        return spec

    def _blocks(self) -> Iterator[str]:
        return (f"block{number}" for number in range(1, self.config.blocks + 1))

    @override
    def numbers_per_history(self, length: int) -> int:
        own = self.config
        return length * (own.blocks * (3 * own.heads * length + (5 + 2 * own.widening) * self.width) + 2 * length)

    @override
    def init_shared(self, rng: torch.Generator) -> Tensors:
        own = self.config
        made = {name: entry.zeros() for name, entry in self.shared.items()}
        made |= {
            "decay": half_lives([own.half_life], own.length),
            "mean": torch.ones(1),
            "norm": torch.ones(self.width),
        }
        slopes = 2.0 ** -torch.arange(1, own.heads + 1)
        for block in self._blocks():
            made |= {f"{block}.{norm}": torch.ones(self.width) for norm in ("norm1", "norm2")}
            made[f"{block}.distance"] = -slopes.unsqueeze(1) * torch.arange(own.length)
            for name in ("qkv", "widen"):
                shape = made[f"{block}.{name}"].shape
                made[f"{block}.{name}"] = torch.randn(shape, generator=rng) * self.width**-0.5
        return made

    @override
    def after(self, shared: Tensors, vectors: Tensor, context: ScoreContext) -> Tensor:
        n, width, heads = vectors.shape[-2], self.width, self.config.heads
        drop = dropout(self.config.dropout, context)
        distance = distances(n, vectors.device)

        def kept(name: str, values: Tensor) -> Tensor:
            return values if drop is None else drop(name, values)

        hidden = kept("input", vectors * math.sqrt(width))
        for block in self._blocks():
            own = {name: shared[f"{block}.{name}"] for name in _BLOCK}
            projected = _rms(hidden, own["norm1"]) @ own["qkv"]
            query, key, value = (
                projected.reshape(*projected.shape[:-1], 3, heads, width // heads).movedim(-3, 0).transpose(-2, -3)
            )
            scores = query @ key.transpose(-1, -2) / math.sqrt(width // heads)
            # Written out: the fused product has no gradient for a trained bias.
            attention = (scores + by_distance(own["distance"], distance, -math.inf)).softmax(-1)
            read = (attention @ value).transpose(-2, -3).flatten(-2)
            hidden = hidden + kept(f"{block}.attention", read @ own["out"])
            wide = gelu(_rms(hidden, own["norm2"]) @ own["widen"] + own["bias"].unsqueeze(-2))
            hidden = hidden + kept(f"{block}.forward", wide @ own["narrow"])
        mean = decaying_means(shared["decay"], vectors).squeeze(-3)
        scale, weight = shared["scale"].exp().unsqueeze(-1), shared["mean"].unsqueeze(-1)
        return _rms(hidden, shared["norm"]) * scale + weight * mean


_BLOCK = ("norm1", "qkv", "distance", "out", "norm2", "widen", "bias", "narrow")


def _rms(values: Tensor, weight: Tensor) -> Tensor:
    """Values [..., n, width] with a root mean square of one, times a weight [..., width]."""
    return values * torch.rsqrt(values.square().mean(-1, keepdim=True) + _EPSILON) * weight.unsqueeze(-2)
