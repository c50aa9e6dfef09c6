"""The rows of an update as a few actions: each row moves by one of K vectors, or not at all.

Source: FedRAS (arXiv 2507.08842, KDD 2025), whose abstract is public and no more; how rows are clustered and coded is
our reading of it (docs/fedras.md).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from annotated_types import Ge, Le
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from fedrec.codecs.actions import MOST_ACTIONS, ActionCodec, Direction, direction
from fedrec.codecs.base import Codec
from fedrec.codecs.rounding import RoundingCodec, tensor_seed
from fedrec.core.registry import MemberConfig, uplinks
from fedrec.core.rng import counter_bits
from fedrec.core.tensors import Spec, TableSpec
from fedrec.stages.base import Stage
from fedrec.stages.contributions import Contributions, Touched
from fedrec.stages.draws import Draws
from fedrec.stages.rounding import Rounding
from fedrec.stages.rows import RowLimits
from fedrec.uplinks.base import Room, Uplink
from fedrec.uplinks.clusters import Clusters, of_numbers, of_rows
from fedrec.uplinks.levels import of_levels
from fedrec.uplinks.padded import Padded


@dataclass(frozen=True)
class ActionsConfig(MemberConfig):
    """Configuration of `actions`.

    Attributes:
        actions: How many there are for each table of an update (K), with that of not moving.
        levels: Where rows are multiples of one, and so are clustered by their factors: whether a factor becomes the
            `nearest` level, which is the mean of its cluster, or is `drawn` from the two around it, which keeps its
            mean. With few actions many small factors fall to not moving, and their sum with them, unless they are
            drawn. With two actions there is one level, and nothing to draw.
    """

    name: Literal["actions"]
    actions: Annotated[int, Ge(2), Le(MOST_ACTIONS)]
    # With a default: a run of old has none in its folder.
    levels: Literal["nearest", "drawn"] = "nearest"


class Found(NamedTuple):
    """The rows of a table that users have changed.

    Attributes:
        entry: The table.
        touched: The rows.
        sane: bool [m], of users all of whose rows are finite. The others are dropped further on, as they are.
        rows: Those of each user side by side, zeros of who is not sane.
        direction: The row of which each user's rows are multiples, if they are.
    """

    entry: TableSpec
    touched: Touched
    sane: Tensor
    rows: Padded
    direction: Direction

    @staticmethod
    def of(touched: Touched, entry: TableSpec, users: int) -> Found:
        """The rows that `users` users have touched."""
        finite = torch.ones(users, dtype=torch.bool, device=touched.owner.device)
        finite[touched.owner[~torch.linalg.vecdot(touched.changes, touched.changes).isfinite()]] = False
        sane = finite[touched.owner]
        changes = touched.changes if bool(finite.all()) else torch.where(sane[:, None], touched.changes, 0.0)
        rows = Padded.of(Touched(touched.owner, touched.rows, changes), users)
        return Found(entry, touched, sane, rows, direction(rows.values))

    @property
    def alike(self) -> Tensor:
        """Bool [U], whose rows are multiples of one."""
        return self.direction.exact

    def farthest(self, counts: Tensor) -> Found:
        """With so many rows of each user [U], those that move farthest; all of one who is not sane, to be dropped."""
        if bool((counts.to(self.rows.counts) >= self.rows.counts).all()):
            return self
        lengths = self.rows.values.norm(dim=2)
        rank = torch.where(self.rows.there, lengths, -1.0).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        stays = (rank < counts.to(rank)[:, None])[self.rows.owner, self.rows.place] | ~self.sane
        touched = Touched(self.touched.owner[stays], self.touched.rows[stays], self.touched.changes[stays])
        return Found.of(touched, self.entry, len(counts))


class Acting(Stage):
    """Clusters the changed rows of each user's tables, and rounds the centres as the run's codec would.

    Rows that are all multiples of one, as those of a single step of matrix factorisation are, are clustered by their
    factors: that loses less, and one row and the factors are all that travels.
    """

    reads = "rows"

    def __init__(
        self, packet: ActionCodec, codec: Codec, rounding: Rounding | None, room: Room | None, levels: str
    ) -> None:
        self._packet, self._codec, self._rounding, self._room, self._levels = packet, codec, rounding, room, levels

    @override
    def on_devices(self, given: Contributions, draws: Draws) -> Contributions:
        users, seeds = len(given), counter_bits(draws.again("actions"), given.keys)
        tables = {name: entry for name, entry in given.spec.items() if isinstance(entry, TableSpec)}
        others = self._codec.size({name: entry for name, entry in given.spec.items() if name not in tables})
        found = [Found.of(given.touched(name), entry, users) for name, entry in tables.items()]
        most = np.full(users, self._packet.config.actions)
        if self._room is not None:
            most, found = self._fitting(found, self._room(given.keys) - others)
        packets = np.full(users, others, dtype=np.int64)
        for name, part in zip(tables, found, strict=True):
            coded, sizes = self._coded(part, tensor_seed(seeds, name), torch.from_numpy(most).to(part.sane.device))
            given, packets = given.replacing(name, coded), packets + sizes
        if self._rounding is not None:
            given = self._rounding.others(given, draws)
        return given.coming_in(packets)

    # How many actions fit ---------------------------------------------------------------------------------------------

    def _fitting(self, found: Sequence[Found], room: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[Found]]:
        """Of each user the most actions whose packet has room for certain, and the rows that it has room for.

        They are powers of two, as a row's action takes whole bits, or all that there may be. Where two actions of all
        rows are too long, those rows are sent that move farthest.
        """
        choices = [*_powers(self._packet.config.actions)]
        most = np.full(len(room), choices[0])
        left = [part.rows.counts.cpu().numpy().copy() for part in found]
        for user, bytes_left in enumerate(room.tolist()):
            rows = [int(counts[user]) for counts in left]
            fitting = [k for k in choices if self._bound(found, user, rows, k) <= bytes_left]
            if fitting:
                most[user] = fitting[-1]
                continue
            bound = partial(self._bound_of_part, found, user, rows, choices[0])
            part = bisect_right(range(1001), bytes_left, key=bound)
            for counts in left:
                counts[user] = counts[user] * max(0, part - 1) // 1000
        return most, [part.farthest(torch.from_numpy(counts)) for part, counts in zip(found, left, strict=True)]

    def _bound(self, found: Sequence[Found], user: int, rows: Sequence[int], most: int) -> int:
        """The most bytes of a user's tables of which so many rows move."""
        total = 0
        for part, count in zip(found, rows, strict=True):
            if bool(part.alike[user]):
                total += self._packet.table_size(part.entry, count, min(most - 1, count), alike=True)
            else:
                total += self._packet.most_of_table(part.entry, count, most)
        return total

    def _bound_of_part(self, found: Sequence[Found], user: int, rows: Sequence[int], most: int, share: int) -> int:
        """The same of so many thousandths of the rows of each table."""
        return self._bound(found, user, [count * share // 1000 for count in rows], most)

    # Clusters ---------------------------------------------------------------------------------------------------------

    def _coded(self, found: Found, seeds: NDArray[np.uint64], most: Tensor) -> tuple[Touched, NDArray[np.int64]]:
        """The rows that move, by what their actions are after rounding, and the bytes of each user's table."""
        touched, given, users = found.touched, found.rows, len(seeds)
        clusters = self._clusters(found, seeds, most)
        actions = torch.nn.functional.pad(clusters.centres, (0, 0, 1, 0))
        taken = clusters.taken[given.owner, given.place]
        moving = (actions != 0).any(2)  # a centre may have been rounded to zero
        moves = torch.nonzero(moving[given.owner, taken] | ~found.sane).flatten()
        owner, taken, sane = given.owner[moves], taken[moves], found.sane[moves]
        changes = torch.where(sane[:, None], actions[owner, taken].to(touched.changes), torch.nan)
        moved = torch.bincount(owner, minlength=users)
        used = torch.zeros(actions.shape[:2], dtype=torch.bool, device=actions.device)
        used[owner, taken] = True
        left = torch.where(used[..., None], actions, 0.0)
        of_each = zip(moved.tolist(), _distinct(left, used).tolist(), direction(left).exact.tolist(), strict=True)
        sizes = [self._packet.table_size(found.entry, rows, kinds, alike=alike) for rows, kinds, alike in of_each]
        return Touched(owner, touched.rows[moves], changes), np.array(sizes, dtype=np.int64)

    def _clusters(self, found: Found, seeds: NDArray[np.uint64], most: Tensor) -> Clusters:
        given = found.rows
        alike, apart = torch.nonzero(found.alike).flatten(), torch.nonzero(~found.alike).flatten()
        users, places, width = given.values.shape
        centres = given.values.new_zeros(users, self._packet.config.actions - 1, width)
        taken = torch.zeros(users, places, dtype=torch.int64, device=centres.device)
        if len(alike):
            by_factor = self._of_factors(found, alike, seeds, most)
            row = self._rounded(found.direction.row[alike][:, None], seeds[alike.cpu().numpy()], by_row=False)
            multiples = by_factor.centres.float() * row
            centres[alike, : multiples.shape[1]] = multiples
            taken[alike] = by_factor.taken
        if len(apart):
            part = Padded(given.owner, given.place, given.counts[apart], given.rows[apart], given.values[apart])
            by_row = of_rows(part, most[apart], seeds[apart.cpu().numpy()])
            rounded = self._rounded(by_row.centres, seeds[apart.cpu().numpy()], by_row=True)
            centres[apart, : rounded.shape[1]] = rounded
            taken[apart] = by_row.taken
        return Clusters(centres, taken)

    def _of_factors(self, found: Found, alike: Tensor, seeds: NDArray[np.uint64], most: Tensor) -> Clusters:
        """Clusters of the factors of the users `alike`, int64 [A], all of whose rows are multiples of one."""
        factors, there = found.direction.factors[alike], found.rows.there[alike]
        nearest = of_numbers(factors, there, most[alike])
        if self._packet.config.actions == 2 or self._levels == "nearest":
            return nearest
        drawn = of_levels(factors, there, found.rows.rows[alike], most[alike].clamp(min=3), seeds[alike.cpu().numpy()])
        several = (most[alike] > 2)[:, None]
        apart = torch.nn.functional.pad(nearest.centres, (0, 0, 0, drawn.centres.shape[1] - nearest.centres.shape[1]))
        return Clusters(
            torch.where(several[..., None], drawn.centres, apart), torch.where(several, drawn.taken, nearest.taken)
        )

    def _rounded(self, actions: Tensor, seeds: NDArray[np.uint64], *, by_row: bool) -> Tensor:
        """What is decoded of `actions` [U, n, width], each user's a tensor of its own."""
        if not isinstance(self._codec, RoundingCodec) or not actions.shape[1]:
            return actions
        of_rows = by_row and self._codec.config.scale == "row"
        scale = actions.abs().amax(2 if of_rows else (1, 2), keepdim=True)
        places = torch.arange(actions[0].numel(), device=actions.device).view(1, *actions.shape[1:])
        return self._codec.rounded(actions, scale, seeds, places)


def _powers(most: int) -> Iterator[int]:
    """2, 4, 8, ... and `most`."""
    power = 2
    while power < most:
        yield power
        power *= 2
    yield most


def _distinct(actions: Tensor, used: Tensor) -> Tensor:
    """int64 [U], how many different rows there are among those of `actions` [U, n, width] that are used."""
    bits = (actions.float() + 0.0).contiguous().view(torch.int32).long()  # the one zero without its sign
    factors = torch.from_numpy(counter_bits(0, np.arange(bits.shape[2])).view(np.int64)).to(actions.device) | 1
    named = torch.where(used, (bits * factors).sum(2), torch.iinfo(torch.int64).max).sort(1).values
    return (used.sum(1) > 0) + ((named[:, 1:] != named[:, :-1]) & (used.sum(1)[:, None] > _places(named))).sum(1)


def _places(named: Tensor) -> Tensor:
    return torch.arange(1, named.shape[1], device=named.device)


@uplinks.register("actions")
class ActionsUplink(Uplink):
    """K actions for each table, and which row takes which."""

    config_class = ActionsConfig
    config: ActionsConfig
    packet: ActionCodec

    @override
    def packet_codec(self, codec: Codec) -> ActionCodec:
        return ActionCodec(codec, self.config.actions)

    @override
    def stages(self, row_limits: RowLimits | None) -> Sequence[Stage]:
        limits = [row_limits] if row_limits else []
        return [*limits, Acting(self.packet, self.codec, self.rounding, self.room, self.config.levels)]

    @override
    def sizes(self, given: Contributions) -> NDArray[np.int64]:
        if given.packets is None:
            raise ValueError("the uplink's own stage has not acted on these contributions")
        return np.where(given.kept.cpu().numpy(), given.packets, self.packet.least(given.spec))

    @override
    def most(self, spec: Spec, changed: Mapping[str, int] | None) -> int:
        if changed is None:
            return self.packet.size(spec)
        return self.packet.least(spec) + sum(
            self.packet.most_of_table(entry, rows) - self.packet.table_size(entry, 0, 0, alike=False)
            for name, rows in changed.items()
            if isinstance(entry := spec[name], TableSpec)
        )
