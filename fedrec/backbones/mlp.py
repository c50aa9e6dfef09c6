"""A multi-layer perceptron as pure functions over named tensors: one for all users, or one for each.

Weights are [in, out], so that rows of inputs multiply them from the left. The input is the concatenation of named
parts, and the first weight is kept as one matrix a part: `[u; v] W = u W_u + v W_v`, so that what belongs to the user
is multiplied once, and not once an item.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fedrec.backbones.base import ScoreContext
from fedrec.core.tensors import Spec, Tensors, TensorSpec

Drop = Callable[[str, Tensor], Tensor]
"""`drop(name, activations)`: a hidden layer's activations [..., items, width], some of them dropped."""


@dataclass(frozen=True)
class Mlp:
    """Linear layers with ReLU between them, and one number at the end.

    Attributes:
        inputs: Width of each part of the input, by name.
        hidden: Width of each hidden layer.
    """

    inputs: Mapping[str, int]
    hidden: Sequence[int]

    def _layers(self) -> Iterator[tuple[int, Spec]]:
        """Of each layer how many numbers enter it, and its tensors."""
        widths = [*self.hidden, 1]
        weights = {f"weight1.{name}": TensorSpec((width, widths[0])) for name, width in self.inputs.items()}
        yield sum(self.inputs.values()), weights | {"bias1": TensorSpec((widths[0],))}
        for number, (before, after) in enumerate(pairwise(widths), start=2):
            yield before, {f"weight{number}": TensorSpec((before, after)), f"bias{number}": TensorSpec((after,))}

    @property
    def spec(self) -> Spec:
        """`weight1.<part>` for each part of the input, then `weight<n>`, all [in, out]; and `bias<n>` [out]."""
        return {name: entry for _, tensors in self._layers() for name, entry in tensors.items()}

    @property
    def numbers_per_score(self) -> int:
        """Activations that are held at once for each score: a layer and the one after it, at their widest."""
        return max(before + after for before, after in pairwise([*self.hidden, 1]))

    def init(self, rng: torch.Generator) -> Tensors:
        """Weights and biases uniform within ±1 / sqrt(numbers that enter the layer): the framework's own start."""
        return {
            name: (torch.rand(entry.shape, generator=rng) * 2 - 1) * entering**-0.5
            for entering, tensors in self._layers()
            for name, entry in tensors.items()
        }

    def score(self, tensors: Tensors, parts: Tensors, drop: Drop | None = None) -> Tensor:
        """Scores [..., items].

        Args:
            tensors: As in `spec`, each with the leading dimensions of the scores (one copy a user) or with none.
            parts: The parts of the input, [..., items, width], or [..., 1, width] where it is the same for all items;
                those come first, so that they are added up before there is a row for each item.
            drop: Applied to each hidden layer, named `hidden<n>`.
        """
        products = (part @ tensors[f"weight1.{name}"] for name, part in parts.items())
        layer = sum(products, start=tensors["bias1"].unsqueeze(-2))
        for number, _ in enumerate(self.hidden, start=1):
            layer = layer.relu_()  # in place, here and below: no backward step needs what is overwritten
            if drop is not None:
                layer = drop(f"hidden{number}", layer)
            layer = (layer @ tensors[f"weight{number + 1}"]).add_(tensors[f"bias{number + 1}"].unsqueeze(-2))
        return layer.squeeze(-1)


def dropout(rate: float, context: ScoreContext) -> Drop | None:
    """Inverted dropout (Srivastava et al., JMLR 2014) with the context's draws; None if nothing is to be dropped.

    While training each activation is zero with probability `rate`, and else divided by `1 - rate`, so that its mean
    stays; ranking drops nothing. Raises ValueError for a context that trains and has no draws.
    """
    if not rate or not context.training:
        return None
    draw = context.uniform
    if draw is None:
        raise ValueError(f"training with dropout {rate} needs the context's `uniform`")

    def drop(name: str, activations: Tensor) -> Tensor:
        kept = draw(name, activations.shape[-1]) >= rate
        return activations * kept / (1 - rate)

    return drop
