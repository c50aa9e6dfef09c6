"""A model: an item embedding plus a backbone, and the names under which its trained tensors travel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fedrec.backbones.base import Backbone
from fedrec.tensors import Spec, TableSpec, Tensors, TensorSpec
from peft_embeddings.base import ItemEmbedding

BASE = "base"
"""Name of the base table among the frozen tensors."""

_EMBEDDING = "embedding."
_BACKBONE = "backbone."


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


class FixedRows(NamedTuple):
    """Gathered rows that nobody trains.

    Attributes:
        tables: Of the embedding's frozen tables: name -> [..., items, r, width].
        base: Of the base table: [..., items, dim]; None for an embedding that uses none.
    """

    tables: Tensors
    base: Tensor | None


class Started(NamedTuple):
    """The tensors of a model at its start: trained and sent, sent once, kept on the server."""

    trainable: Tensors
    frozen: Tensors
    kept: Tensors


@dataclass(frozen=True)
class Model:
    """Any embedding works with any backbone; both are stateless, the tensors are handed in."""

    embedding: ItemEmbedding
    backbone: Backbone

    @property
    def trainable(self) -> Spec:
        """What is trained and travels each round: `embedding.<table or dense>` and `backbone.<shared>`."""
        parts = {**self.embedding.tables, **self.embedding.dense}
        embedding = {self.embedding_name(name): spec for name, spec in parts.items()}
        return embedding | {self.backbone_name(name): spec for name, spec in self.backbone.shared.items()}

    @staticmethod
    def embedding_name(name: str) -> str:
        """The name under which one of the embedding's tensors travels."""
        return _EMBEDDING + name

    @staticmethod
    def backbone_name(name: str) -> str:
        """The name under which one of the backbone's shared tensors travels."""
        return _BACKBONE + name

    @property
    def frozen(self) -> Spec:
        """What is sent once before the first round: the base table, if it is corrected, and the embedding's own."""
        base = {BASE: TensorSpec((self.embedding.n_items, self.embedding.dim))} if self.embedding.uses_base else {}
        return base | dict(self.embedding.frozen)

    def start(self, base: Tensor, shared: Tensors, rng: torch.Generator) -> Started:
        """Initial tensors over a base table, with the backbone's `shared` tensors as they are."""
        made = self.embedding.init(base, rng)
        kept = {name: made.pop(name) for name in self.embedding.kept}
        frozen = {name: made.pop(name) for name in self.embedding.frozen}
        if self.embedding.uses_base:
            frozen[BASE] = base
        return Started(self.named(made, shared), frozen, kept)

    def init(self, base: Tensor, shared: Tensors, rng: torch.Generator) -> tuple[Tensors, Tensors]:
        """The trainable and the frozen tensors of `start`: all that a client ever sees."""
        started = self.start(base, shared, rng)
        return started.trainable, started.frozen

    def named(self, embedding: Tensors, shared: Tensors) -> Tensors:
        """The embedding's and the backbone's trained tensors under the names by which they travel."""
        trainable = {self.embedding_name(name): tensor for name, tensor in embedding.items()}
        return trainable | {self.backbone_name(name): tensor for name, tensor in shared.items()}

    def shared(self, trainable: Tensors) -> Tensors:
        """The backbone's shared tensors among the trained ones."""
        return _under(_BACKBONE, trainable)

    def tables(self, trainable: Tensors) -> Tensors:
        """The embedding's row-addressable tables among the trained ones."""
        return {name: trainable[self.embedding_name(name)] for name in self.embedding.tables}

    def dense(self, trainable: Tensors) -> Tensors:
        """The embedding's dense tensors among the trained ones."""
        return {name: trainable[self.embedding_name(name)] for name in self.embedding.dense}

    def fixed_rows(self, frozen: Tensors, items: Tensor) -> FixedRows:
        """What item ids [...] read of the base table, if it is used, and of the embedding's frozen tables."""
        held = [name for name, spec in self.embedding.frozen.items() if isinstance(spec, TableSpec)]
        places = self.embedding.rows(items, frozen) if held else {}
        base = None
        if self.embedding.uses_base:
            base = frozen[BASE].index_select(0, items.flatten()).reshape(*items.shape, self.embedding.dim)
        return FixedRows({name: frozen[name][places[name]] for name in held}, base)

    def embed(self, rows: Tensors, dense: Tensors, frozen: Tensors, fixed: FixedRows) -> Tensor:
        """Vectors [..., items, dim] from gathered rows of the trained tables, and those of the frozen ones."""
        return self.embedding.embed(rows | fixed.tables, dense, frozen, fixed.base)

    def item_vectors(self, trainable: Tensors, frozen: Tensors, items: Tensor) -> Tensor:
        """Vectors [..., dim] of item ids [...], read from whole tables that all users share."""
        flat = items.reshape(-1)
        rows = self.embedding.rows(flat, frozen)
        gathered = {name: table[rows[name]] for name, table in self.tables(trainable).items()}
        vectors = self.embed(gathered, self.dense(trainable), frozen, self.fixed_rows(frozen, flat))
        return vectors.reshape(*items.shape, self.embedding.dim)
