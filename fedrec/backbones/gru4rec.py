"""A gated recurrent unit over the latest items, after GRU4Rec (Hidasi et al., ICLR 2016).

The unit is that of Cho et al. (EMNLP 2014), with one bias a gate. Its update gate starts mostly open for what was
before (bias 1), and a matrix that starts as the identity brings what it holds into the space of the items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Lt
from torch import Tensor
from typing_extensions import override

from fedrec.backbones.base import Advice, ScoreContext
from fedrec.backbones.mlp import dropout
from fedrec.backbones.sequence import SequenceBackbone, SequenceConfig
from fedrec.core.registry import backbones
from fedrec.core.tensors import Spec, Tensors, TensorSpec


@dataclass(frozen=True)
class GRU4RecConfig(SequenceConfig):
    """Configuration of `gru4rec`.

    Attributes:
        dropout: Share of the activations that training drops, of the input and of the output.
    """

    name: Literal["gru4rec"]
    dropout: Annotated[float, Ge(0), Lt(1)]


@backbones.register("gru4rec")
class GRU4Rec(SequenceBackbone):
    """State: what a gated recurrent unit holds after the item.

    While it trains it reads the whole of what it is given, however long; a ranking reads the latest `length` items.
    """

    config_class = GRU4RecConfig
    config: GRU4RecConfig
    advice = Advice(loss="bce", lr=0.001)

    @property
    @override
    def shared(self) -> Spec:
        d = self.width
        return {
            "input": TensorSpec((d, 3 * d)),
            "hidden": TensorSpec((d, 3 * d)),
            "bias": TensorSpec((3 * d,)),
            "out": TensorSpec((d, d)),
            "scale": TensorSpec((1,)),
        }

    @override
    def numbers_per_history(self, length: int) -> int:
        return 12 * length * self.width

    @override
    def init_shared(self, rng: torch.Generator) -> Tensors:
        d = self.width
        made = {name: torch.randn(d, 3 * d, generator=rng) * d**-0.5 for name in ("input", "hidden")}
        bias = torch.zeros(3, d)
        bias[1] = 1.0
        return made | {"bias": bias.flatten(), "out": torch.eye(d), "scale": torch.zeros(1)}

    @override
    def after(self, shared: Tensors, vectors: Tensor, context: ScoreContext) -> Tensor:
        drop = dropout(self.config.dropout, context)
        read = vectors if drop is None else drop("input", vectors)
        entering = read @ shared["input"] + shared["bias"].unsqueeze(-2)
        weights = shared["hidden"]
        held = vectors.new_zeros(*vectors.shape[:-2], 1, self.width)
        states = [held[..., :0, :]]
        for place in range(vectors.shape[-2]):
            reset_in, update_in, new_in = entering[..., place : place + 1, :].chunk(3, -1)
            reset_held, update_held, new_held = (held @ weights).chunk(3, -1)
            update = torch.sigmoid(update_in + update_held)
            new = torch.tanh(new_in + torch.sigmoid(reset_in + reset_held) * new_held)
            held = (1 - update) * new + update * held
            states.append(held)
        out = torch.cat(states, -2)
        out = out if drop is None else drop("output", out)
        return out @ shared["out"] * shared["scale"].exp().unsqueeze(-1)
