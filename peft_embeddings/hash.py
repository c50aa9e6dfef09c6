"""Hashed correction of a frozen table (P-Hash), or hashed vectors alone (C-Hash): the mean of an item's h rows.

In variant P the table starts at zero. Nothing random is needed to tell its rows apart: the first gradient of a row is
that of the items which read it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from typing_extensions import override

from fedrec.core.registry import embeddings
from fedrec.core.space import Real, Space, Whole
from fedrec.core.tensors import Tensors
from peft_embeddings.hashing import HashedConfig, HashedEmbedding


@dataclass(frozen=True)
class HashConfig(HashedConfig):
    """Configuration of `hash`."""

    name: Literal["hash"]


@embeddings.register("hash")
class HashEmbedding(HashedEmbedding):
    """`c_i` is the mean of h rows, whatever their order."""

    config_class = HashConfig
    space: ClassVar[Space] = {"buckets": Whole(64, 4096, log=True), "scaling": Real(0.1, 10.0, log=True)}
    config: HashConfig
    ordered = False

    @override
    def random_std(self, length: float) -> float:
        return length * math.sqrt(self.config.functions / self.dim)

    @override
    def compressed(self, rows: Tensors, dense: Tensors, frozen: Tensors) -> Tensor:
        return rows["rows"].mean(-2)
