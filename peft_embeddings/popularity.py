"""A frozen table with a popularity of each item, which users are asked for: `e_i`, with a number in the last place.

That is `s log(1 + a_i / f)`, added to what is there. `a_i` is no parameter: users do not train it, they say what they
have, and the mean over the users of a round, and over all such rounds alike, is `a_i`. A user's part is a number for
each of its items, all alike and of norm 1 together, so that who has many items counts for less with each: one user more
or less moves a sum of such parts by no more than 1, however many items it has. Noise of a mechanism of privacy comes on
top as it does in any round, so that `a_i` may be below zero: it counts as zero then.

With a backbone whose `item_bias` is on, the last place is the bias of the item's scores. Elsewhere it is a number of
the vector like others, to which a user's private vector is fitted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from annotated_types import Gt, Le
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from fedrec.core.bounds import LARGEST_START
from fedrec.core.registry import MemberConfig, embeddings
from fedrec.core.tensors import TableSpec, Tensors
from fedrec.data.statistics import Parts, items_had
from peft_embeddings.base import ItemEmbedding

TABLE = "popularity"


@dataclass(frozen=True)
class PopularityConfig(MemberConfig):
    """Configuration of `popularity`.

    Attributes:
        scaling: The factor `s`.
        floor: The popularity `f` from which on items are told apart. An item that a share p of the users has, who have
            n items each, is at p / sqrt(n).
    """

    name: Literal["popularity"]
    scaling: Annotated[float, Gt(0), Le(LARGEST_START)]
    floor: Annotated[float, Gt(0), Le(1)]


@embeddings.register("popularity")
class PopularityEmbedding(ItemEmbedding):
    """`e_i + (0, ..., 0, s log(1 + a_i / f))`; all `a_i` are zero before anybody was asked."""

    config_class = PopularityConfig
    config: PopularityConfig
    uses_base = True
    counts: ClassVar[bool] = True

    @property
    @override
    def tables(self) -> Mapping[str, TableSpec]:
        return {TABLE: TableSpec((self.n_items, 1))}

    @override
    def init(self, base: Tensor, rng: torch.Generator) -> Tensors:
        return {TABLE: self.tables[TABLE].zeros()}

    @override
    def rows(self, items: Tensor, frozen: Tensors) -> Mapping[str, Tensor]:
        return {TABLE: items.unsqueeze(-1)}

    @override
    def embed(self, rows: Tensors, dense: Tensors, frozen: Tensors, base_rows: Tensor | None) -> Tensor:
        assert base_rows is not None, "popularity corrects a base table"
        had = rows[TABLE].squeeze(-2).clamp(min=0)
        column = self.config.scaling * torch.log1p(had / self.config.floor)
        return torch.cat([base_rows[..., :-1], base_rows[..., -1:] + column], -1)

    @override
    def counted(self, offsets: NDArray[np.int64], items: NDArray[np.int64]) -> Mapping[str, Parts]:
        return {TABLE: items_had(offsets, items)}
