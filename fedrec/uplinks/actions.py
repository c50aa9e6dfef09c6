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

from fedrec.codecs.actions import MOST_ACTIONS, ActionCodec, Directions, directions
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
from fedrec.uplinks.padded import Padded, by_length


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
        touched: The rows; zeros of who is not sane.
        sane: bool [U], whose rows are all finite. The others are dropped further on.
        counts: int64 [U], how many rows each has.
        directions: The row of which each user's rows are multiples, if they are.
    """

    entry: TableSpec
    touched: Touched
    sane: Tensor
    counts: Tensor
    directions: Directions

    @staticmethod
    def of(touched: Touched, entry: TableSpec, users: int) -> Found:
        """The rows that `users` users have touched."""
        sane = torch.ones(users, dtype=torch.bool, device=touched.owner.device)
        sane[touched.owner[~torch.linalg.vector_norm(touched.changes, dim=1).isfinite()]] = False
        if not bool(sane.all()):
            changes = torch.where(sane[touched.owner][:, None], touched.changes, 0.0)
            touched = Touched(touched.owner, touched.rows, changes)
        counts = torch.bincount(touched.owner, minlength=users)
        return Found(entry, touched, sane, counts, directions(touched.changes, touched.owner, users))

    @property
    def alike(self) -> Tensor:
        """Bool [U], whose rows are multiples of one."""
        return self.directions.exact

    def farthest(self, counts: Tensor) -> Found:
        """With so many rows of each user [U], those that move farthest; all of one who is not sane, to be dropped."""
        if bool((counts.to(self.counts) >= self.counts).all()):
            return self
        owner, rows, changes = self.touched
        lengths = Padded.of(Touched(owner, rows, changes.norm(dim=1)[:, None]), len(counts))
        length = torch.where(lengths.there, lengths.values[..., 0], -1.0)
        rank = length.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        stays = (rank < counts.to(rank)[:, None])[owner, lengths.place] | ~self.sane[owner]
        left = Found.of(Touched(owner[stays], rows[stays], changes[stays]), self.entry, len(counts))
        return left._replace(sane=self.sane)


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
        left = [part.counts.cpu().numpy().copy() for part in found]
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
        touched, users = found.touched, len(seeds)
        actions, taken = self._clusters(found, seeds, most)
        of_each = touched.owner * actions.shape[1] + taken
        moving = (actions != 0).any(2)  # a centre may have been rounded to zero
        sane = found.sane[touched.owner]
        moves = torch.nonzero(moving.flatten().index_select(0, of_each) | ~sane).flatten()
        owner, of_each = touched.owner[moves], of_each[moves]
        changes = actions.flatten(0, 1).index_select(0, of_each).to(touched.changes)
        changes[~sane[moves]] = torch.nan
        used = torch.zeros_like(moving)
        used.view(-1)[of_each] = True
        kinds, alike = _distinct(actions, used), directions(actions[used], torch.nonzero(used)[:, 0], users).exact
        moved = torch.bincount(owner, minlength=users)
        of_users = zip(moved.tolist(), kinds.tolist(), alike.tolist(), strict=True)
        sizes = [self._packet.table_size(found.entry, rows, kinds, alike=alike) for rows, kinds, alike in of_users]
        return Touched(owner, touched.rows[moves], changes), np.array(sizes, dtype=np.int64)

    def _clusters(self, found: Found, seeds: NDArray[np.uint64], most: Tensor) -> tuple[Tensor, Tensor]:
        """Rounded actions [U, K, width], the first of them zero, and which of them each row takes, int64 [m]."""
        touched = found.touched
        actions = touched.changes.new_zeros(len(seeds), self._packet.config.actions, touched.changes.shape[1])
        taken = torch.zeros_like(touched.owner)
        factors = Touched(touched.owner, touched.rows, found.directions.factors[:, None])
        for users, at, rows in by_length(factors, found.counts, found.alike):
            own = seeds[users.cpu().numpy()]
            by_factor = self._of_factors(rows, most[users], own)
            row = self._rounded(found.directions.row[users][:, None], own, by_row=False)
            actions[users, 1 : 1 + by_factor.centres.shape[1]] = by_factor.centres.float() * row
            taken[at] = by_factor.taken[rows.owner, rows.place]
        for users, at, rows in by_length(touched, found.counts, ~found.alike):
            own = seeds[users.cpu().numpy()]
            by_row = of_rows(rows, most[users], own)
            actions[users, 1 : 1 + by_row.centres.shape[1]] = self._rounded(by_row.centres, own, by_row=True)
            taken[at] = by_row.taken[rows.owner, rows.place]
        return actions, taken

    def _of_factors(self, factors: Padded, most: Tensor, seeds: NDArray[np.uint64]) -> Clusters:
        """Clusters of the factors [U, M, 1] of users all of whose rows are multiples of one."""
        numbers, there = factors.values[..., 0], factors.there
        nearest = of_numbers(numbers, there, most)
        if self._packet.config.actions == 2 or self._levels == "nearest":
            return nearest
        drawn = of_levels(numbers, there, factors.rows, most.clamp(min=3), seeds)
        several = (most > 2)[:, None]
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
