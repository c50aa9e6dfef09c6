"""Low-rank correction of a frozen table (P-LoRA): `e_i + s a_i B`.

Source: FedPEFT (arXiv 2512.13734), after LoRA (Hu et al., ICLR 2022): `A` is [n_items, rank], and `B = 0` at the start,
so that the first vectors are exactly those of the frozen table. `B` is [rank, dim], the transpose of the paper's: the
product of row vectors with it is several times faster.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor
from typing_extensions import override

from fedrec.registry import MemberConfig, embeddings
from fedrec.tensors import TableSpec, Tensors, TensorSpec
from peft_embeddings.base import ItemEmbedding


@dataclass(frozen=True)
class LoraConfig(MemberConfig):
    """Configuration of `lora`.

    Attributes:
        rank: Columns of `A` and `B`; 4 is the paper's best.
        init_std: Standard deviation of the normal start of `A`.
        scaling: The factor `s` before the correction.
    """

    name: Literal["lora"]
    rank: Annotated[int, Ge(1)]
    init_std: Annotated[float, Gt(0)]
    scaling: Annotated[float, Gt(0)]


@embeddings.register("lora")
class LoraEmbedding(ItemEmbedding):
    """`e_i + s a_i B` over a frozen base table."""

    config_class = LoraConfig
    config: LoraConfig
    uses_base = True

    @property
    @override
    def tables(self) -> Mapping[str, TableSpec]:
        return {"A": TableSpec((self.n_items, self.config.rank))}

    @property
    @override
    def dense(self) -> Mapping[str, TensorSpec]:
        return {"B": TensorSpec((self.config.rank, self.dim))}

    @override
    def init(self, base: Tensor, rng: torch.Generator) -> Tensors:
        a = torch.randn(self.tables["A"].shape, generator=rng) * self.config.init_std
        return {"A": a, "B": self.dense["B"].zeros()}

    @override
    def rows(self, items: Tensor, frozen: Tensors) -> Mapping[str, Tensor]:
        return {"A": items.unsqueeze(-1)}

    @override
    def embed(self, rows: Tensors, dense: Tensors, frozen: Tensors, base_rows: Tensor | None) -> Tensor:
        assert base_rows is not None, "lora corrects a base table"
        return torch.add(base_rows, rows["A"].squeeze(-2) @ dense["B"], alpha=self.config.scaling)
