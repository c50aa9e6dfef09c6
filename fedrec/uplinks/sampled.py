"""Some of the rows that changed, drawn by how far they moved, and made larger so that the mean stays what it was."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Le
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from fedrec.codecs.rounding import tensor_seed
from fedrec.codecs.sparse import SparseCodec
from fedrec.core.bounds import MOST_ITEMS
from fedrec.core.registry import MemberConfig, uplinks
from fedrec.core.rng import counter_bits, counter_uniform
from fedrec.core.tensors import Spec, TableSpec
from fedrec.stages.base import Stage
from fedrec.stages.contributions import Contributions, Touched
from fedrec.stages.draws import Draws
from fedrec.stages.rows import RowLimits
from fedrec.uplinks.base import Room
from fedrec.uplinks.padded import Padded
from fedrec.uplinks.sparse import ListedRows


@dataclass(frozen=True)
class SampledConfig(MemberConfig):
    """Configuration of `sampled`.

    Attributes:
        rows: Of each table, how many a user sends, where it has changed as many and the network's budget for a reply
            has room for them; else as many as there is room for.
    """

    name: Literal["sampled"]
    rows: Annotated[int, Ge(1), Le(MOST_ITEMS)]


def chances(lengths: Tensor, wanted: Tensor) -> Tensor:
    """The chance of each of [U, M] to be among `wanted` (int64 [U]), in proportion to its length, but at most 1.

    Those of a user add up to `wanted`, or to the number of its lengths that are not zero, if that is smaller. For rows
    that are drawn so and divided by their chance the variance of the sum is the smallest there is (Horvitz and
    Thompson, 1952; Wangni et al., NeurIPS 2018).
    """
    wanted = wanted[:, None]
    ordered = lengths.double().sort(1, descending=True).values
    rest = ordered.flip(1).cumsum(1).flip(1)
    number = torch.arange(ordered.shape[1], device=lengths.device)
    factor = (wanted - number) / rest  # if as many of the largest are certain
    fits = (factor * ordered <= 1) & (number < wanted) & (rest > 0)
    first = fits.double().argmax(1, keepdim=True)
    drawn = lengths.double() * factor.gather(1, first)
    return torch.where(fits.any(1, keepdim=True), drawn.clamp(max=1.0), ((lengths > 0) & (wanted > 0)).double())


class Sampling(Stage):
    """Draws rows of each user's tables, as many as its packet has room for, and divides each by its chance."""

    reads = "rows"

    def __init__(self, rows: int, packet: SparseCodec, room: Room | None) -> None:
        self._rows, self._packet, self._room = rows, packet, room

    @override
    def on_devices(self, given: Contributions, draws: Draws) -> Contributions:
        seeds = counter_bits(draws.again("sampled"), given.keys)
        wanted = torch.from_numpy(self._fitting(given)).to(given.loss.device)
        for name in given.tables:
            given = given.replacing(name, self._drawn(given.touched(name), wanted, tensor_seed(seeds, name)))
        return given

    def _fitting(self, given: Contributions) -> NDArray[np.int64]:
        """int64 [U], how many rows of each table a user sends: at most so many, and with room in its packet."""
        most = np.full(len(given), self._rows)
        if self._room is None:
            return most
        changed = {name: given.changed_rows(name) for name in given.tables}

        def size(user: int, rows: int) -> int:
            return self._packet.size_of_rows(
                given.spec, {name: min(rows, int(of[user])) for name, of in changed.items()}
            )

        for user, room in enumerate(self._room(given.keys).tolist()):
            most[user] = max(0, bisect_right(range(self._rows + 1), room, key=partial(size, user)) - 1)
        return most

    def _drawn(self, touched: Touched, wanted: Tensor, seeds: NDArray[np.uint64]) -> Touched:
        """Systematic sampling: the sums of the chances so far, of which those are taken that pass a whole number."""
        owner, rows, changes = touched
        given = Padded.of(Touched(owner, rows, changes.norm(dim=1)[:, None]), len(seeds))
        chance = chances(given.values[..., 0], wanted)
        start = torch.from_numpy(counter_uniform(seeds, 0)).to(chance.device)[:, None]
        passed = (chance.cumsum(1) + start + _LAST_BITS).floor()
        taken = passed.diff(dim=1, prepend=torch.zeros_like(start)) > 0
        stays = (taken & given.there)[owner, given.place] | ~changes.abs().amax(1).isfinite()
        weight = 1 / chance[owner, given.place][stays]
        drawn = changes.index_select(0, torch.nonzero(stays).flatten()) * weight[:, None].to(changes)
        return Touched(owner[stays], rows[stays], drawn)


_LAST_BITS = 1e-9
"""So that chances that add up to a whole number reach it."""


@uplinks.register("sampled")
class SampledUplink(ListedRows):
    """As `sparse`, of the rows that were drawn."""

    config_class = SampledConfig
    config: SampledConfig

    @override
    def stages(self, row_limits: RowLimits | None) -> Sequence[Stage]:
        """The drawing first: a row that was made larger is limited like any other."""
        return [Sampling(self.config.rows, self.packet, self.room), *super().stages(row_limits)]

    @override
    def most(self, spec: Spec, changed: Mapping[str, int] | None) -> int:
        tables = {name: entry.rows for name, entry in spec.items() if isinstance(entry, TableSpec)}
        known = tables if changed is None else changed
        return self.packet.size_of_rows(spec, {name: min(rows, self.config.rows) for name, rows in known.items()})
