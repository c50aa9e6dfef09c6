"""Adding up: in floating point, or on a public grid, where no order and no layout can change a bit."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from fedrec.core.tensors import Tensors
from fedrec.stages.base import Shares
from fedrec.stages.contributions import Contributions, Rows
from fedrec.stages.draws import Draws
from fedrec.stages.rounding import Rounding

MOST_USERS = 2**21
"""Users whose sum a grid holds for certain."""

_UNIT_BITS = 18


class Addition(ABC):
    """How contributions become a sum: weight times factor times change, over the users that are kept."""

    @abstractmethod
    def zeros(self, like: Tensors, users: int) -> Tensors:
        """The sum of nobody yet, of `users` who may come, in the shapes and on the device of `like`."""

    @abstractmethod
    def add(self, given: Contributions, total: Tensors, draws: Draws) -> None:
        """Add all users to `total`, in place; the values of `given` are of no use afterwards."""


class PlainAddition(Addition):
    """In the type of the values."""

    def zeros(self, like: Tensors, users: int) -> Tensors:
        """As in `Addition`."""
        return {name: torch.zeros_like(tensor) for name, tensor in like.items()}

    def add(self, given: Contributions, total: Tensors, draws: Draws) -> None:
        """As in `Addition`."""
        kept, scale = given.kept, _scale(given)
        for name, blocks in given.rows.items():
            for block in blocks:
                _scale_rows(block, kept, scale)
                total[name].index_add_(0, block.rows.flatten(), block.values.flatten(0, 1))
        for name, tensor in given.whole.items():
            total[name] += torch.tensordot(scale[kept].to(tensor.dtype), tensor[kept], dims=1)


class GridAddition(Addition):
    """In whole numbers: every user's numbers are cut off to a public grid before they are added.

    The grid follows from what every device is told, never from what anybody trained. Noise that is a function of the
    exact sum is then the same wherever users live. What is put on the grid is what the packet of the user's own device
    decodes to, so that a device alone, whose packet is put on it by the server, and a node with a thousand users come
    to the same. Numbers are cut off towards zero, so that no update grows.

    Attributes:
        units_per_one: Grid points in a distance of 1, a power of two: there are 2**18 to 2**19 in the largest norm of a
            user's update. The sum of `MOST_USERS` users fits into 64 bits, whatever their weights.
    """

    def __init__(self, max_norm: float, rounding: Rounding | None) -> None:
        self.units_per_one = 2.0 ** (_UNIT_BITS - math.floor(math.log2(max_norm)))
        self._rounding = rounding

    def zeros(self, like: Tensors, users: int) -> Tensors:
        """As in `Addition`; int64, but of a user alone the values of its packet."""
        dtype = torch.int64 if users > 1 else None
        return {name: torch.zeros_like(tensor, dtype=dtype) for name, tensor in like.items()}

    def add(self, given: Contributions, total: Tensors, draws: Draws) -> None:
        """As in `Addition`."""
        scale = _scale(given)
        for blocks in given.rows.values():
            for block in blocks:
                _scale_rows(block, given.kept, scale)
        whole = {}
        for name, tensor in given.whole.items():
            of_user = (len(given), *[1] * (tensor.ndim - 1))
            whole[name] = torch.where(given.kept.reshape(of_user), tensor, 0) * scale.to(tensor.dtype).reshape(of_user)
        given = given.changed(whole=whole)
        if self._rounding is not None:
            given = self._rounding.nearest(given)
        for name, blocks in given.rows.items():
            for block in blocks:
                total[name].index_add_(0, block.rows.flatten(), self._put(block.values.flatten(0, 1), total[name]))
        for name, tensor in given.whole.items():
            total[name] += self._put(tensor, total[name]).sum(0)

    def _put(self, values: Tensor, total: Tensor) -> Tensor:
        return values if total.is_floating_point() else in_units(values, self.units_per_one)


class SharedNoise(Addition):
    """On a public grid, each user's numbers with a share of noise of its own: whole numbers from the device on.

    Attributes:
        units_per_one: Grid points in a distance of 1, a power of two.
    """

    def __init__(self, shares: Shares) -> None:
        self.units_per_one = shares.units_per_one
        self._shares = shares

    def zeros(self, like: Tensors, users: int) -> Tensors:
        """As in `Addition`; int64, and int32 of a user alone, whose numbers and noise are far below that."""
        dtype = torch.int64 if users > 1 else torch.int32
        return {name: torch.zeros_like(tensor, dtype=dtype) for name, tensor in like.items()}

    def add(self, given: Contributions, total: Tensors, draws: Draws) -> None:
        """As in `Addition`; who is not kept sends no noise either."""
        for user in given.one_by_one():
            if not user.kept.all():
                continue
            scale = _scale(user)
            units = {name: in_units(tensor[0] * scale, self.units_per_one) for name, tensor in user.whole.items()}
            share = self._shares.of(units, int(user.keys[0]), draws)
            for name, tensor in units.items():
                total[name] += tensor + share[name].to(tensor.device)


def in_units(values: Tensor, units_per_one: float) -> Tensor:
    """Numbers as int64 numbers of grid points, cut off towards zero."""
    return (values.double() * units_per_one).trunc().to(torch.int64)


def _scale(given: Contributions) -> Tensor:
    """float64 [U], by what each user's values are multiplied; 0 for who is not kept, whose factor may be NaN."""
    return torch.where(given.kept, given.weight * given.factor, 0.0)


def _scale_rows(block: Rows, kept: Tensor, scale: Tensor) -> None:
    """Multiply each user's values by a number of its own, in place; nothing is left of users that are not kept."""
    if not kept.all():  # what was dropped may be NaN, and zero times NaN is not zero
        block.values[~kept[block.owner]] = 0
    block.values.mul_(scale[block.owner, None, None].to(block.values.dtype))
