"""The sum of a round's contributions on the server, before it is divided."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedrec.core.tensors import DTYPES, Spec, Tensors
from fedrec.stages.draws import Draws
from fedrec.stages.noise import normal

Standard = Callable[..., Tensor]
"""Noise of the standard scale, float64, of a key and a shape (`fedrec.stages.noise`)."""

_LARGEST_UNIT = 2.0**62


@dataclass(frozen=True)
class Sum:
    """A sum in fixed point: whole numbers, so that neither the order of replies nor the layout matters.

    Attributes:
        spec: What travels.
        units: int64, by name: the sum of weight times factor times change, in `units_per_one`-ths.
        units_per_one: A power of two.
        denominator: What the sum is divided by: the users' weights, unless a stage has put a public number there.
    """

    spec: Spec
    units: Mapping[str, Tensor]
    units_per_one: float
    denominator: float

    def over(self, denominator: float) -> Sum:
        """With another denominator: a public one tells nothing of who took part, and is there for nobody, too."""
        return dataclasses.replace(self, denominator=denominator)

    def plus(self, noise: Mapping[str, Tensor]) -> Sum:
        """With float64 noise added to every number and rounded to whole units.

        Raises ValueError if the noise is not finite or larger than the units can hold.
        """
        units = {}
        for name, before in self.units.items():
            drawn = noise[name] * self.units_per_one
            if not bool((drawn.abs() < _LARGEST_UNIT).all()):  # of NaN, too
                raise ValueError(f"noise of up to {float(drawn.abs().max()):g} units does not fit into the sum")
            units[name] = before + drawn.round().to(torch.int64)
        return dataclasses.replace(self, units=units)

    def with_noise(self, scale: float, draws: Draws, standard: Standard = normal) -> Sum:
        """With independent noise on every number, drawn once only: standard noise times `scale`.

        Another scale has other noise: of the same sum with multiples of the same noise the difference would be the sum.
        """
        key = draws.once(self.units, repr(scale))
        return self.plus(
            {name: scale * standard(key + name.encode(), *units.shape) for name, units in self.units.items()}
        )

    def mean(self) -> Tensors | None:
        """The sum over the denominator; None if that is zero, because nobody contributed."""
        if self.denominator <= 0:
            return None
        return {
            name: (units.double() / (self.units_per_one * self.denominator)).to(DTYPES[self.spec[name].dtype])
            for name, units in self.units.items()
        }
