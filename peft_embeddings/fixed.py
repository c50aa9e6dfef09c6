"""The base table as it is: nothing of an item is trained, and what is learned is in the backbone alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import override

from fedrec.backbones.base import Backbone
from fedrec.config.schema import RunConfig
from fedrec.core.registry import MemberConfig, backbones, embeddings
from fedrec.core.tensors import TableSpec, Tensors
from peft_embeddings.base import ItemEmbedding


@dataclass(frozen=True)
class FixedConfig(MemberConfig):
    """Nothing of it can be chosen."""

    name: Literal["fixed"]


@embeddings.register("fixed")
class FixedEmbedding(ItemEmbedding):
    """An item's vector is its row of the frozen base table."""

    config_class = FixedConfig
    uses_base = True

    @classmethod
    def problems(cls, config: RunConfig) -> list[str]:
        """What does not fit together in a configuration, a line each."""
        if backbones.get(config.backbone.name).shared is not Backbone.shared:
            return []
        return [
            f"embedding=fixed trains nothing, and backbone={config.backbone.name} shares nothing that could be trained "
            "instead; choose another embedding"
        ]

    @property
    @override
    def tables(self) -> Mapping[str, TableSpec]:
        return {}

    @override
    def init(self, base: Tensor, rng: torch.Generator) -> Tensors:
        return {}

    @override
    def rows(self, items: Tensor, frozen: Tensors) -> Mapping[str, Tensor]:
        return {}

    @override
    def embed(self, rows: Tensors, dense: Tensors, frozen: Tensors, base_rows: Tensor | None) -> Tensor:
        assert base_rows is not None, "the vectors are the base table's"
        return base_rows
