"""A frozen table with one trained number an item: its vector is `e_i`, plus `s a_i` in the last place.

With a backbone whose `item_bias` is on, that place is the bias of the item's scores: nothing of the table is trained,
and the popularity of items is. It is the smallest correction that there is, n numbers, for data on which the text of
items says more than users' histories do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Gt, Le
from torch import Tensor
from typing_extensions import override

from fedrec.core.bounds import LARGEST_START
from fedrec.core.registry import MemberConfig, embeddings
from fedrec.core.tensors import TableSpec, Tensors
from peft_embeddings.base import ItemEmbedding


@dataclass(frozen=True)
class BiasConfig(MemberConfig):
    """Configuration of `bias`.

    Attributes:
        scaling: The factor `s`. A server that steps adaptively moves every number about as far: a large factor lets the
            biases go far while what the backbone trains goes a little way.
    """

    name: Literal["bias"]
    scaling: Annotated[float, Gt(0), Le(LARGEST_START)]


@embeddings.register("bias")
class BiasEmbedding(ItemEmbedding):
    """`e_i + (0, ..., 0, s a_i)`; all `a_i` start at zero."""

    config_class = BiasConfig
    config: BiasConfig
    uses_base = True

    @property
    @override
    def tables(self) -> Mapping[str, TableSpec]:
        return {"bias": TableSpec((self.n_items, 1))}

    @override
    def init(self, base: Tensor, rng: torch.Generator) -> Tensors:
        return {"bias": self.tables["bias"].zeros()}

    @override
    def rows(self, items: Tensor, frozen: Tensors) -> Mapping[str, Tensor]:
        return {"bias": items.unsqueeze(-1)}

    @override
    def embed(self, rows: Tensors, dense: Tensors, frozen: Tensors, base_rows: Tensor | None) -> Tensor:
        assert base_rows is not None, "bias corrects a base table"
        bias = self.config.scaling * rows["bias"].squeeze(-2)
        return torch.cat([base_rows[..., :-1], base_rows[..., -1:] + bias], -1)
