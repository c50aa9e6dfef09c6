"""The whole table: one trained vector per item, started from the pre-trained one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import override

from fedrec.core.registry import MemberConfig, embeddings
from fedrec.core.tensors import TableSpec, Tensors
from peft_embeddings.base import ItemEmbedding


@dataclass(frozen=True)
class FullConfig(MemberConfig):
    """The whole table has nothing to choose."""

    name: Literal["full"]


@embeddings.register("full")
class FullEmbedding(ItemEmbedding):
    """`e_i`, a row of one table [n_items, dim] (the method `Full`, and the warm-up of `fedpeft`)."""

    config_class = FullConfig
    uses_base = False

    @property
    @override
    def tables(self) -> Mapping[str, TableSpec]:
        return {"items": TableSpec((self.n_items, self.dim))}

    @override
    def init(self, base: Tensor, rng: torch.Generator) -> Tensors:
        return {"items": base.clone()}

    @override
    def grow(self, tensors: Tensors, vectors: Tensor) -> Tensors:
        return {"items": torch.cat([tensors["items"], vectors])}

    @override
    def rows(self, items: Tensor, frozen: Tensors) -> Mapping[str, Tensor]:
        return {"items": items.unsqueeze(-1)}

    @override
    def embed(self, rows: Tensors, dense: Tensors, frozen: Tensors, base_rows: Tensor | None) -> Tensor:
        return rows["items"].squeeze(-2)
