"""What users give in a round, before anything is added up."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedrec.core.tensors import Spec, TableSpec, Tensors

_CLIP_MARGIN = 1 - 2.0**-12
"""Room for the rounding of a norm and of the products with a clip's factor, in float32."""

_NUMBERS_AT_ONCE = 2**18


class Rows(NamedTuple):
    """What users changed in rows of a table, where few of its rows are touched.

    A user's row has other than zeros in one place only, so that squares can be summed place by place.

    Attributes:
        owner: int64 [blocks], the user of each block, ascending where an engine made them.
        rows: int64 [blocks, n], rows of the table; a row may stand in several places.
        values: [blocks, n, width], what was added to it there.
    """

    owner: Tensor
    rows: Tensor
    values: Tensor


class Touched(NamedTuple):
    """The rows of a table that users changed, each once, in the order of users and rows.

    Attributes:
        owner: int64 [m], the user.
        rows: int64 [m], the row of the table.
        changes: [m, width], by how much; other than zero.
    """

    owner: Tensor
    rows: Tensor
    changes: Tensor


@dataclass(frozen=True)
class Contributions:
    """What U users give. Stages return another one; they may change the values in place, for nobody else holds them.

    A table is either in `rows` (sparse, as the cohort engine has it) or in `whole` (dense, as the oracle has it, and as
    every stage gets it that reads `dense`). Everything else is in `whole`.

    Attributes:
        spec: What travels; a `TableSpec` is a table.
        keys: uint64 [U], the users' opaque keys.
        rows: Of a table, its changed rows: name -> blocks.
        whole: Of any other tensor, its change: name -> [U, ...].
        examples: int64 [U], training interactions; told beside the update as a sum.
        loss: [U], loss before the first local step; told beside the update as a weighted sum.
        kept: bool [U], who is taken. A stage may drop users, never bring them back.
        weight: float64 [U], what a user's update counts in the sum and, unless a stage divides by a public number, in
            the denominator.
        factor: float64 [U], by which the values are still to be multiplied: a clip need not touch them.
        squared: float64 [U], the squared norm of each user's values before `factor`, over everything that travels; None
            while no stage has asked for it.
        dropped: Users dropped so far, by reason.
        packets: int64 [U], bytes of the tensors in each user's own packet, of an uplink that knows them when its stage
            has acted; None: they follow from the values.
    """

    spec: Spec
    keys: NDArray[np.uint64]
    rows: Mapping[str, Sequence[Rows]]
    whole: Tensors
    examples: Tensor
    loss: Tensor
    kept: Tensor
    weight: Tensor
    factor: Tensor
    squared: Tensor | None = None
    dropped: Counter[str] = field(default_factory=Counter)
    packets: NDArray[np.int64] | None = None

    @staticmethod
    def of(
        spec: Spec,
        keys: NDArray[np.uint64],
        rows: Mapping[str, Sequence[Rows]],
        whole: Tensors,
        examples: NDArray[np.int64],
        loss: Tensor,
    ) -> Contributions:
        """What users give before any stage: each is taken, with weight 1."""
        one = torch.ones(len(keys), dtype=torch.float64, device=loss.device)
        kept = torch.ones(len(keys), dtype=torch.bool, device=loss.device)
        return Contributions(
            spec, keys, rows, whole, torch.from_numpy(examples).to(loss.device), loss, kept, one, one.clone()
        )

    def __len__(self) -> int:
        return len(self.keys)

    def changed(
        self, *, rows: Mapping[str, Sequence[Rows]] | None = None, whole: Tensors | None = None
    ) -> Contributions:
        """With other values; the norms are no longer known."""
        return dataclasses.replace(
            self,
            rows=self.rows if rows is None else rows,
            whole=self.whole if whole is None else whole,
            squared=None,
        )

    def weighing(self, weight: Tensor) -> Contributions:
        """With other weights [U]."""
        return dataclasses.replace(self, weight=weight.double())

    def coming_in(self, packets: NDArray[np.int64]) -> Contributions:
        """With the bytes of each user's own packet [U], which its uplink has just settled."""
        return dataclasses.replace(self, packets=packets)

    def scaled(self, factor: Tensor) -> Contributions:
        """With each user's values multiplied by a number of its own [U]; nothing is touched yet."""
        return dataclasses.replace(self, factor=self.factor * factor)

    def clipped(self, bound: float) -> Contributions:
        """With each update shortened to a norm of at most `bound`; of a stage that reads `norms`.

        A little below the bound, for norm and products are rounded.
        """
        return self.scaled((bound * _CLIP_MARGIN / self.norms).clamp(max=1.0))

    def clipped_sums(self, bound: float) -> Contributions:
        """With each update shortened until the sum of the sizes of its numbers (its L1 norm) is at most `bound`."""
        sums = torch.zeros(len(self), dtype=torch.float64, device=self.loss.device)
        for blocks in self.rows.values():
            for block in blocks:
                sums.index_add_(0, block.owner, block.values.flatten(1).abs().sum(1, dtype=torch.float64))
        for tensor in self.whole.values():
            sums += tensor.reshape(len(self), -1).abs().sum(1, dtype=torch.float64)
        return self.scaled((bound * _CLIP_MARGIN / (sums * self.factor)).clamp(max=1.0))

    def dropping(self, users: Tensor, reason: str) -> Contributions:
        """Without `users` (bool [U]); who was not dropped before is counted under `reason`.

        The reasons are `fedrec.wire.updates.DROPPED`.
        """
        count = int((users & self.kept).sum())
        if not count:
            return self
        return dataclasses.replace(self, kept=self.kept & ~users, dropped=self.dropped + Counter({reason: count}))

    @property
    def norms(self) -> Tensor:
        """float64 [U], the norm of each user's update as it stands, over everything that travels, before its weight.

        Raises ValueError if nobody formed it: the stage has to say that it reads `norms`.
        """
        if self.squared is None:
            raise ValueError('a stage reads norms that were not formed: let it say `reads = "norms"`')
        return self.squared.sqrt() * self.factor

    def with_norms(self) -> Contributions:
        """The same with the norms formed, if they are not."""
        if self.squared is not None:
            return self
        squared = torch.zeros(len(self), dtype=torch.float64, device=self.loss.device)
        for blocks in self.rows.values():
            for block in blocks:
                flat = block.values.flatten(1)
                squared.index_add_(0, block.owner, torch.linalg.vecdot(flat, flat).double())
        for tensor in self.whole.values():
            squared += tensor.reshape(len(self), -1).double().square().sum(1)
        return dataclasses.replace(self, squared=squared)

    @property
    def tables(self) -> list[str]:
        """Names of the tables that travel."""
        return [name for name, entry in self.spec.items() if isinstance(entry, TableSpec)]

    def changed_rows(self, name: str) -> NDArray[np.int64]:
        """int64 [U], how many rows of a table each user's own packet changes: none of a user who is not kept."""
        counts = torch.zeros(len(self), dtype=torch.int64, device=self.loss.device)
        if name in self.rows:
            for block in self.rows[name]:  # of a row that stands in several places one is not zero
                counts.index_add_(0, block.owner, (block.values.abs().amax(2) != 0).sum(1))
        else:
            counts += (self.whole[name] != 0).any(2).sum(1)
        return torch.where(self.kept, counts, 0).cpu().numpy()

    def touched(self, name: str) -> Touched:
        """The rows of a table that are not zero."""
        if name not in self.rows:
            owner, row = torch.nonzero((self.whole[name] != 0).any(2), as_tuple=True)
            return Touched(owner, row, self.whole[name][owner, row])
        blocks = self.rows[name]
        owner = torch.cat([block.owner.repeat_interleave(block.rows.shape[1]) for block in blocks])
        row = torch.cat([block.rows.flatten() for block in blocks])
        values = torch.cat([block.values.flatten(0, 1) for block in blocks])
        hit = torch.nonzero(values.abs().amax(1) != 0).flatten()
        hit = hit[torch.argsort(owner[hit] * self.spec[name].shape[0] + row[hit])]
        return Touched(owner[hit], row[hit], values.index_select(0, hit))

    def replacing(self, name: str, by: Touched) -> Contributions:
        """With these rows of a table in the place of all that users have changed."""
        if name in self.rows:
            return self.changed(rows={**self.rows, name: [Rows(by.owner, by.rows[:, None], by.changes[:, None])]})
        table = torch.zeros_like(self.whole[name])
        table[by.owner, by.rows] = by.changes
        return self.changed(whole={**self.whole, name: table})

    def adding(self, name: str, more: Touched) -> Contributions:
        """With other rows of a table, which the users have not touched."""
        if name in self.rows:
            block = Rows(more.owner, more.rows[:, None], more.changes[:, None])
            return self.changed(rows={**self.rows, name: [*self.rows[name], block]})
        table = self.whole[name].index_put((more.owner, more.rows), more.changes)
        return self.changed(whole={**self.whole, name: table})

    def parts(self, users: int) -> Iterator[tuple[int, int]]:
        """The first `users` of them as stretches, start and end, of so few that their values stay in a cache.

        Each stage passes over the values several times.
        """
        tensors = [block.values for blocks in self.rows.values() for block in blocks] + list(self.whole.values())
        numbers = sum(tensor.numel() for tensor in tensors)
        several = max(1, _NUMBERS_AT_ONCE * len(self) // max(1, numbers))
        for start in range(0, users, several):
            yield start, min(users, start + several)

    def part(self, start: int, end: int) -> Contributions:
        """The users from `start` to `end` alone; nothing is copied. Owners of rows have to ascend."""
        within = slice(start, end)
        rows: dict[str, list[Rows]] = {}
        for name, blocks in self.rows.items():
            rows[name] = []
            for block in blocks:
                mine = slice(*torch.searchsorted(block.owner, torch.tensor([start, end]).to(block.owner)).tolist())
                rows[name].append(Rows(block.owner[mine] - start, block.rows[mine], block.values[mine]))
        return dataclasses.replace(
            self,
            keys=self.keys[within],
            rows=rows,
            whole={name: tensor[within] for name, tensor in self.whole.items()},
            examples=self.examples[within],
            loss=self.loss[within],
            kept=self.kept[within],
            weight=self.weight[within],
            factor=self.factor[within],
            squared=None,
        )

    def one_by_one(self) -> Iterator[Contributions]:
        """Each user by itself, with every table formed whole."""
        for user in range(len(self)):
            one = slice(user, user + 1)
            whole = {name: tensor[one] for name, tensor in self.whole.items()}
            for name, blocks in self.rows.items():
                table = torch.zeros(self.spec[name].shape, dtype=blocks[0].values.dtype, device=self.loss.device)
                for block in blocks:
                    mine = block.owner == user
                    table.index_add_(0, block.rows[mine].flatten(), block.values[mine].flatten(0, 1))
                whole[name] = table[None]
            yield Contributions(
                self.spec,
                self.keys[one],
                {},
                whole,
                self.examples[one],
                self.loss[one],
                self.kept[one],
                self.weight[one],
                self.factor[one],
            )
