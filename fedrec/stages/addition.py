"""Adding up: in floating point, or on a public grid, where no order and no layout can change a bit."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from fedrec.codecs.rounding import tensor_seed
from fedrec.core.rng import counter_bits, element_uniform
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

    def add_idle(self, keys: NDArray[np.uint64], total: Tensors, draws: Draws) -> None:
        """Add to `total`, in place, what users owe who have nothing to train on: here nothing."""
        return


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


class WholeNumbers(Addition):
    """On a public grid: each user's numbers are whole ones from the device on, and are sent as such.

    Attributes:
        units_per_one: Grid points in a distance of 1, a power of two.
        most_units: The largest number of one user, in grid points.
        variance: Of the noise that each user adds to every number, in grid points, squared.
    """

    units_per_one: float
    most_units: float
    variance: float = 0.0

    def zeros(self, like: Tensors, users: int) -> Tensors:
        """As in `Addition`; int64, and int32 of a user alone, whose numbers and noise are far below that."""
        dtype = torch.int64 if users > 1 else torch.int32
        return {name: torch.zeros_like(tensor, dtype=dtype) for name, tensor in like.items()}


class PublicGrid(WholeNumbers):
    """Rounded at random to one of the two nearest points, so that the mean stays where it was.

    The draw of a number is a function of the round, the user, the tensor and its place there: what a user gives is the
    same whoever is added up beside it, and if it is asked for again. What is larger than any number should be is cut
    off.
    """

    def __init__(self, bits: int, largest: float) -> None:
        """Of numbers up to `largest`, weight included, that have at most 2**bits points of the grid."""
        self.units_per_one = 2.0 ** (bits - math.ceil(math.log2(largest)))
        self.most_units = largest * self.units_per_one

    def add(self, given: Contributions, total: Tensors, draws: Draws) -> None:
        """As in `Addition`."""
        seeds, scale = counter_bits(draws.again("grid"), given.keys), _scale(given) * self.units_per_one
        for name, blocks in given.rows.items():
            of_users = tensor_seed(seeds, name)
            for block in blocks:
                width = block.values.shape[2]
                places = block.rows[..., None] * width + torch.arange(width, device=block.rows.device)
                drawn = element_uniform(of_users[block.owner.cpu().numpy()], places)
                units = self._units(block.values, scale[block.owner], given.kept[block.owner], drawn)
                total[name].index_add_(0, block.rows.flatten(), units.flatten(0, 1).to(total[name].dtype))
        for name, tensor in given.whole.items():
            flat = tensor.reshape(len(given), -1)
            places = torch.arange(flat.shape[1], device=flat.device)[None, :]
            drawn = element_uniform(tensor_seed(seeds, name), places)
            units = self._units(flat, scale, given.kept, drawn).sum(0)
            total[name] += units.reshape(total[name].shape).to(total[name].dtype)

    def _units(self, values: Tensor, scale: Tensor, kept: Tensor, drawn: Tensor) -> Tensor:
        """Values [n, ...], each times the scale of its user, as int64 numbers of grid points; 0 of who is not kept."""
        of_user = (-1, *[1] * (values.ndim - 1))
        units = torch.where(kept.reshape(of_user), values, 0).double() * scale.reshape(of_user)
        return (units.clamp(-self.most_units, self.most_units) + drawn).floor().to(torch.int64)


class SharedNoise(WholeNumbers):
    """Each user's numbers are cut off towards zero and get a share of noise of its own."""

    def __init__(self, shares: Shares, *, everybody: bool = False) -> None:
        """With these shares; `everybody`: who is left out sends its noise all the same, for others count on it."""
        self.units_per_one, self.most_units, self.variance = shares.units_per_one, shares.most_units, shares.variance
        self._shares, self._everybody = shares, everybody

    def add(self, given: Contributions, total: Tensors, draws: Draws) -> None:
        """As in `Addition`."""
        for user in given.one_by_one():
            if not (self._everybody or user.kept.all()):
                continue
            scale = _scale(user)
            units = {
                name: in_units(torch.where(user.kept, tensor[0] * scale, 0.0), self.units_per_one)
                for name, tensor in user.whole.items()
            }
            share = self._shares.of(units, int(user.keys[0]), draws)
            for name, tensor in units.items():
                total[name] += tensor + share[name].to(tensor.device)

    @override
    def add_idle(self, keys: NDArray[np.uint64], total: Tensors, draws: Draws) -> None:
        for key in keys.tolist() if self._everybody else ():
            nothing = {name: torch.zeros_like(tensor, dtype=torch.int64) for name, tensor in total.items()}
            for name, share in self._shares.of(nothing, key, draws).items():
                total[name] += share.to(total[name].device)


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
