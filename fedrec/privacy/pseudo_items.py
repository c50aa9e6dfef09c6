"""Pseudo items (Wu et al., Nature Communications 2022): rows that a user never read, among those that it did.

The rows of a table in which a user's update is not zero tell the server which items the user trained on. To each table
this mechanism adds changes for rows that were not touched, drawn uniformly, `share` times as many as were. Values are

- `normal`, as in the paper: from a normal distribution with the mean and the covariance of the touched rows' changes.
  That hides the rows of a gradient of normal numbers. What travels here is the sum of a few optimiser steps, and those
  of Adam are about the learning rate in every number of a row, so that real rows are flatter than any normal draw:
  whoever looks at the spread within a row tells most of them apart (a test measures it).
- `resampled`: each is the change of one of the touched rows, bit for bit, and every touched row is used equally often.
  With a share of 1 each real row has one twin; no rule that looks at the values tells which of the two is real.

**What it does not hide.** How many rows were touched. Rows without a twin: if more than half of the rows were touched,
or the share is below 1. What the server knows beside the update: a popular item is more likely the real one of a pair.
The rounds: positives come again in a user's every update, while pseudo rows (and negatives) are drawn afresh, so that
the rows common to several updates are the history. A user who is seen once is left with two candidates for each item,
one who is seen in a whole run with none (`docs/privacy.md` has figures). That an item in a group of
twins is a positive: the values themselves stay what they are. Dense tensors are sent as they are: `B` of a low-rank
correction carries a mixture of the rows that were read. The rows of a low-rank `A` are items, hidden as those of a full
table are; rows of a hash table or a codebook are shared by many items, and an item none of whose rows is among the real
or pseudo ones is ruled out all the same. The sum over a node's users hides more than any of this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Le
from torch import Tensor
from typing_extensions import override

from fedrec.config.schema import RunConfig
from fedrec.core.registry import MemberConfig, privacies
from fedrec.core.rng import generator
from fedrec.privacy.base import RowAdding

_PERMUTED_PER_DRAWN = 64
"""Up to this many possible numbers for each drawn one, permuting all of them is cheaper than looking for doubles."""


@dataclass(frozen=True)
class PseudoItemsConfig(MemberConfig):
    """Configuration of `pseudo_items`.

    Attributes:
        share: Pseudo rows for each touched one, as far as there are untouched rows.
        values: `resampled` from the touched rows, or `normal` like them.
    """

    name: Literal["pseudo_items"]
    share: Annotated[float, Ge(0), Le(1000)]
    values: Literal["resampled", "normal"]


@privacies.register("pseudo_items")
class PseudoItems(RowAdding):
    """Untouched rows, with changes like those of the touched ones."""

    config_class = PseudoItemsConfig
    config: PseudoItemsConfig

    @classmethod
    def problems(cls, config: RunConfig) -> list[str]:
        """Why it would hide nothing, one line; none if it hides something."""
        if config.embedding.name == "fixed":
            return [
                "privacy=pseudo_items: with embedding=fixed no row of an item is in an update, and so there is none to "
                "hide among others; leave it out"
            ]
        return []

    @override
    def added_rows(self, name: str, size: int, touched: Tensor, changes: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        rng = generator(seed, "pseudo_items", name)
        real = len(touched)
        wanted = min(int(self.config.share * real + 0.5), size - real)
        numbers = distinct(size - real, wanted, rng).to(touched.device)
        # The n-th untouched row: `touched[i] - i` of them stand before the i-th touched one.
        before = touched - torch.arange(real, device=touched.device)
        return numbers + torch.searchsorted(before, numbers, right=True), self._values(changes, wanted, rng)

    def _values(self, changes: Tensor, wanted: int, rng: torch.Generator) -> Tensor:
        """Changes [wanted, width]."""
        if not wanted:
            return changes[:0]
        real = len(changes)
        if self.config.values == "resampled":
            passes = [torch.randperm(real, generator=rng) for _ in range(-(-wanted // real))]
            return changes.index_select(0, torch.cat(passes)[:wanted].to(changes.device))
        mean = changes.mean(0)
        root: Tensor = torch.linalg.qr(changes - mean, mode="r").R / real**0.5  # root' root is the covariance
        noise = torch.randn(wanted, len(root), generator=rng, dtype=changes.dtype)
        return torch.addmm(mean, noise.to(changes.device), root)


def distinct(bound: int, count: int, rng: torch.Generator) -> Tensor:
    """int64 [count]: different whole numbers below `bound`, in random order, every choice equally likely."""
    if bound <= _PERMUTED_PER_DRAWN * count:
        return torch.randperm(bound, generator=rng)[:count]
    drawn = np.zeros(0, dtype=np.int64)
    while True:
        drawn = np.concatenate([drawn, torch.randint(bound, (count + 16,), generator=rng).numpy()])
        _, first = np.unique(drawn, return_index=True)
        if len(first) >= count:
            return torch.from_numpy(drawn[np.sort(first)[:count]])
