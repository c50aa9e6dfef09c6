"""Low-rank vectors: a correction of a frozen table (P-LoRA) `e_i + s a_i B`, or alone (C-LoRA) `s a_i B`.

Source: FedPEFT (arXiv 2512.13734), after LoRA (Hu et al., ICLR 2022): `A` is [n_items, rank], and in P `B = 0` at the
start, so that the first vectors are exactly those of the frozen table. `B` is [rank, dim], the paper's transposed:
the product of row vectors with it is several times faster.

Alone, both start with normal numbers of one standard deviation, chosen so that the vectors are about as long as those
of the base; or (semantic) as the base's best approximation of that rank, its truncated singular value decomposition.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from typing_extensions import override

from fedrec.core.bounds import LARGEST_START, MOST_DIMENSIONS
from fedrec.core.registry import embeddings
from fedrec.core.space import Real, Space, Whole
from fedrec.core.tensors import TableSpec, Tensors, TensorSpec
from peft_embeddings.compressed import CompressedConfig, CompressedEmbedding, Start

_NOTHING = 1e-6
"""Share of the largest singular value below which one is rounding."""


@dataclass(frozen=True)
class LoraConfig(CompressedConfig):
    """Configuration of `lora`.

    Attributes:
        rank: Columns of `A` and rows of `B`; 4 is the paper's best.
        init_std: Standard deviation of the normal start of `A` wherever `B` starts at zero.
    """

    starts: ClassVar[Mapping[str, tuple[Start, ...]]] = {"P": ("zero",), "C": ("random", "semantic")}

    name: Literal["lora"]
    rank: Annotated[int, Ge(1), Le(MOST_DIMENSIONS)]
    init_std: Annotated[float, Gt(0), Le(LARGEST_START)]


@embeddings.register("lora")
class LoraEmbedding(CompressedEmbedding):
    """`c_i = a_i B`."""

    config_class = LoraConfig
    space: ClassVar[Space] = {"rank": Whole(1, 16, log=True), "scaling": Real(0.1, 10.0, log=True)}
    config: LoraConfig

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
        config = self.config
        a, b = torch.randn(self.tables["A"].shape, generator=rng), self.dense["B"].zeros()
        if config.resolved_start == "random":
            # The squared length of a B is rank dim std^4 on average.
            std = math.sqrt(self.random_length(base) / math.sqrt(config.rank * self.dim))
            return {"A": a * std, "B": torch.randn(b.shape, generator=rng) * std}
        a *= config.init_std
        if config.resolved_start == "semantic":
            _approximate(base / config.scaling, a, b)
        return {"A": a, "B": b}

    @override
    def restart(self, rng: torch.Generator) -> Tensors | None:
        # The sum of several corrections of rank k has a higher rank: what was merged gives room to the next.
        if not self.uses_base:
            return None
        a = torch.randn(self.tables["A"].shape, generator=rng) * self.config.init_std
        return {"A": a, "B": self.dense["B"].zeros()}

    @override
    def grow(self, tensors: Tensors, vectors: Tensor) -> Tensors:
        grown = super().grow(tensors, vectors)
        if not self.uses_base:
            # Alone, a row of zero would say nothing of the item: the nearest vector that B allows does.
            rows = vectors @ torch.linalg.pinv(tensors["B"]) / self.config.scaling
            grown["A"] = torch.cat([tensors["A"], rows])
        return grown

    @override
    def rows(self, items: Tensor, frozen: Tensors) -> Mapping[str, Tensor]:
        return {"A": items.unsqueeze(-1)}

    @override
    def compressed(self, rows: Tensors, dense: Tensors, frozen: Tensors) -> Tensor:
        return rows["A"].squeeze(-2) @ dense["B"]


def _approximate(table: Tensor, a: Tensor, b: Tensor) -> None:
    """Make `a @ b` the nearest to a table [items, dim] that its rank allows; each takes a root of the singular values.

    Where the table has fewer dimensions than the rank, `a` and `b` stay as they are.
    """
    double = table.double()
    squares, directions = torch.linalg.eigh(double.T @ double)
    values = squares.clamp(min=0).sqrt().flip(0)[: len(b)]
    directions = directions.flip(1)[:, : len(b)]
    # A direction's sign is free: its largest entry decides, so that no library's habit does.
    largest = directions.abs().argmax(0, keepdim=True)
    directions = directions * torch.where(directions.gather(0, largest) < 0, -1.0, 1.0)
    for column, (value, direction) in enumerate(zip(values, directions.T, strict=True)):
        if value > _NOTHING * values[0]:
            a[:, column] = double @ direction / value.sqrt()
            b[column] = direction * value.sqrt()
