"""The rows of an update as a few actions: each row moves by one of K vectors, or not at all.

Source: FedRAS (arXiv 2507.08842, KDD 2025), whose abstract is public and no more; how rows are clustered and coded is
our reading of it (docs/fedras.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from annotated_types import Ge, Le
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from fedrec.codecs.actions import MOST_ACTIONS, ActionCodec, direction
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
from fedrec.uplinks.base import Uplink
from fedrec.uplinks.clusters import Clusters, of_numbers, of_rows
from fedrec.uplinks.padded import Padded


@dataclass(frozen=True)
class ActionsConfig(MemberConfig):
    """Configuration of `actions`.

    Attributes:
        actions: How many there are for each table of an update (K), with that of not moving.
    """

    name: Literal["actions"]
    actions: Annotated[int, Ge(2), Le(MOST_ACTIONS)]


class Coded(NamedTuple):
    """The rows of a table as actions.

    Attributes:
        touched: The rows that move, by what their actions are after rounding.
        moved: int64 [U], how many there are.
        distinct: int64 [U], the actions that they take.
        alike: bool [U], whether these are multiples of one row.
    """

    touched: Touched
    moved: NDArray[np.int64]
    distinct: NDArray[np.int64]
    alike: NDArray[np.bool_]


class Acting(Stage):
    """Clusters the changed rows of each user's tables, and rounds the centres as the run's codec would.

    Rows that are all multiples of one, as those of a single step of matrix factorisation are, are clustered by their
    factors: that loses less, and one row and the factors are all that travels.
    """

    reads = "rows"

    def __init__(self, packet: ActionCodec, codec: Codec, rounding: Rounding | None) -> None:
        self._packet, self._codec, self._rounding = packet, codec, rounding

    @override
    def on_devices(self, given: Contributions, draws: Draws) -> Contributions:
        packets = np.zeros(len(given), dtype=np.int64)
        seeds = counter_bits(draws.again("actions"), given.keys)
        for name, entry in given.spec.items():
            if not isinstance(entry, TableSpec):
                packets += self._codec.size({name: entry})
                continue
            coded = self._coded(given.touched(name), tensor_seed(seeds, name), entry)
            given = given.replacing(name, coded.touched)
            of_each = zip(coded.moved.tolist(), coded.distinct.tolist(), coded.alike.tolist(), strict=True)
            packets += np.array([self._packet.table_size(entry, rows, k, alike=alike) for rows, k, alike in of_each])
        if self._rounding is not None:
            given = self._rounding.others(given, draws)
        return given.coming_in(packets)

    def _coded(self, touched: Touched, seeds: NDArray[np.uint64], entry: TableSpec) -> Coded:
        users = len(seeds)
        finite = torch.ones(users, dtype=torch.bool, device=touched.owner.device)
        finite[touched.owner[~touched.changes.isfinite().all(1)]] = False  # they are dropped further on, as they are
        sane = finite[touched.owner]
        given = Padded.of(Touched(touched.owner, touched.rows, touched.changes * sane[:, None]), users)
        found = self._clusters(given, seeds)
        actions = torch.nn.functional.pad(found.centres, (0, 0, 1, 0))
        taken = found.taken[given.owner, given.place]
        changes = torch.where(sane[:, None], actions[given.owner, taken].to(touched.changes), torch.nan)
        moves = (changes != 0).any(1)
        moved = torch.bincount(given.owner[moves], minlength=users)
        used = torch.zeros(actions.shape[:2], dtype=torch.bool, device=actions.device)
        used[given.owner[moves], taken[moves]] = True
        left = torch.where(used[..., None], actions, 0.0)
        return Coded(
            Touched(touched.owner[moves], touched.rows[moves], changes[moves]),
            moved.cpu().numpy(),
            _distinct(left, used).cpu().numpy(),
            direction(left).exact.cpu().numpy(),
        )

    def _clusters(self, given: Padded, seeds: NDArray[np.uint64]) -> Clusters:
        most = torch.full_like(given.counts, self._packet.config.actions)
        found = direction(given.values)
        alike, apart = torch.nonzero(found.exact).flatten(), torch.nonzero(~found.exact).flatten()
        users, places, width = given.values.shape
        centres = given.values.new_zeros(users, self._packet.config.actions - 1, width)
        taken = torch.zeros(users, places, dtype=torch.int64, device=centres.device)
        if len(alike):
            by_factor = of_numbers(found.factors[alike], given.there[alike], most[alike])
            row = self._rounded(found.row[alike][:, None], seeds[alike.cpu().numpy()], by_row=False)
            centres[alike] = by_factor.centres.float() * row
            taken[alike] = by_factor.taken
        if len(apart):
            part = Padded(given.owner, given.place, given.counts[apart], given.rows[apart], given.values[apart])
            by_row = of_rows(part, most[apart], seeds[apart.cpu().numpy()])
            rounded = self._rounded(by_row.centres, seeds[apart.cpu().numpy()], by_row=True)
            centres[apart, : rounded.shape[1]] = rounded
            taken[apart] = by_row.taken
        return Clusters(centres, taken)

    def _rounded(self, actions: Tensor, seeds: NDArray[np.uint64], *, by_row: bool) -> Tensor:
        """What is decoded of `actions` [U, n, width], each user's a tensor of its own."""
        if not isinstance(self._codec, RoundingCodec) or not actions.shape[1]:
            return actions
        of_rows = by_row and self._codec.config.scale == "row"
        scale = actions.abs().amax(2 if of_rows else (1, 2), keepdim=True)
        places = torch.arange(actions[0].numel(), device=actions.device).view(1, *actions.shape[1:])
        return self._codec.rounded(actions, scale, seeds, places)


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
        return [*limits, Acting(self.packet, self.codec, self.rounding)]

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
