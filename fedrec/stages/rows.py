"""How far one user may move a row of a table, and what everybody shares beside tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from fedrec.core.tensors import Spec, TableSpec, TensorSpec
from fedrec.stages.base import Stage
from fedrec.stages.contributions import Contributions
from fedrec.stages.draws import Draws

RowReach = Callable[[int], float]
"""Of a row of so many numbers: the largest norm of a user's change of it, times the user's weight. A tensor that is no
table counts as one row."""


@dataclass(frozen=True)
class RowLimits(Stage):
    """Shortens the rows that a user moves too far, each by itself.

    A limit on the whole update keeps nobody from putting all of it into one row, and so one item into everybody's list.
    One on each row does, and leaves the rest of the update as it is: to leave out users instead would cost those whom
    the model has just surprised. What a device's own software shortens is not counted; what a server finds beyond the
    limit is (`federation.aggregation.UpdateFold`), for no such software has sent it. A tensor that is no table, as the
    `B` of a low-rank correction or the weights of a backbone, counts as one row: everybody shares the whole of it.

    Attributes:
        reach: The limit, for the sum of a round: change times weight.
        weight_cap: A user's weight is the number of its training interactions, at most this.
    """

    reads = "rows"

    reach: RowReach
    weight_cap: int

    def of(self, spec: Spec, coarsest: float) -> Mapping[str, float]:
        """Of each table, the largest norm of one user's row in a node's sum; of any other tensor, of the whole.

        Args:
            spec: What travels.
            coarsest: How far a codec may be off, as a part of the largest number of a table; 0 for an exact one.
        """
        widths = {name: _width(entry) for name, entry in spec.items()}
        return {name: self.reach(width) * (1 + math.sqrt(width) * coarsest) for name, width in widths.items()}

    @override
    def on_devices(self, given: Contributions, draws: Draws) -> Contributions:
        weight = given.examples.clamp(min=1, max=self.weight_cap)
        whole = dict(given.whole)
        for name, entry in given.spec.items():
            width = _width(entry)
            longest = self.reach(width) / weight
            if name in given.rows:
                for block in given.rows[name]:
                    _shorten(block.values, longest[block.owner])
            else:
                whole[name] = whole[name].clone(memory_format=torch.contiguous_format)
                _shorten(whole[name].view(len(given), -1, width), longest)
        return given.changed(whole=whole)


def _width(entry: TensorSpec) -> int:
    """Numbers in a row; of a tensor that is no table all of them."""
    return entry.shape[1] if isinstance(entry, TableSpec) else entry.size


def _shorten(values: Tensor, longest: Tensor) -> None:
    """Scale rows [users, n, width] down to a norm of at most `longest` [users], in place."""
    squares, bound = torch.linalg.vecdot(values, values), longest.to(values.dtype)
    over = (squares > bound.square()[:, None]).nonzero(as_tuple=True)
    if len(over[0]):
        values[over] *= (bound[over[0]] / squares[over].sqrt())[:, None]
