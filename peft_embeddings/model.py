"""A model: an item embedding plus a backbone, and the names under which its trained tensors travel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedrec.backbones.base import Backbone, History
from fedrec.tensors import Spec, Tensors, TensorSpec
from peft_embeddings.base import ItemEmbedding

BASE = "base"
"""Name of the base table among the frozen tensors."""

_EMBEDDING = "embedding."
_BACKBONE = "backbone."


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


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
        """What is sent once: the base table, if it is corrected, the embedding's own, and `backbone.<frozen>`."""
        items = self.embedding.n_items
        base = {BASE: TensorSpec((items, self.embedding.dim))} if self.embedding.uses_base else {}
        backbone = {self.backbone_name(name): spec for name, spec in self.backbone.frozen(items).items()}
        return base | dict(self.embedding.frozen) | backbone

    def init(
        self, base: Tensor, shared: Tensors, rng: torch.Generator, counts: Tensor | None = None
    ) -> tuple[Tensors, Tensors]:
        """Initial (trainable, frozen) tensors.

        Args:
            base: The base table [n_items, dim].
            shared: The backbone's shared tensors, which are taken as they are.
            rng: For the embedding.
            counts: Users per item [n_items] as the backbone had them counted (None: not counted, 1 for every item).
        """
        made = self.embedding.init(base, rng)
        frozen = {name: made.pop(name) for name in self.embedding.frozen}
        if self.embedding.uses_base:
            frozen[BASE] = base
        frozen |= self.backbone_frozen(torch.ones(self.embedding.n_items) if counts is None else counts)
        trainable = {self.embedding_name(name): tensor for name, tensor in made.items()}
        return trainable | {self.backbone_name(name): tensor for name, tensor in shared.items()}, frozen

    def backbone_frozen(self, counts: Tensor) -> Tensors:
        """The backbone's frozen tensors for users per item [n_items], by the names under which they travel."""
        return {self.backbone_name(name): tensor for name, tensor in self.backbone.init_frozen(counts).items()}

    def user(self, trainable: Tensors, frozen: Tensors, private: Tensors, history: History) -> Tensors:
        """What the backbone's score reads of a user: its private tensors, or what they and its history give."""
        if not self.backbone.reads_history:
            return private
        return self.backbone.user(self.shared(trainable), private, _under(_BACKBONE, frozen), history)

    def shared(self, trainable: Tensors) -> Tensors:
        """The backbone's shared tensors among the trained ones."""
        return _under(_BACKBONE, trainable)

    def tables(self, trainable: Tensors) -> Tensors:
        """The embedding's row-addressable tables among the trained ones."""
        return {name: trainable[self.embedding_name(name)] for name in self.embedding.tables}

    def dense(self, trainable: Tensors) -> Tensors:
        """The embedding's dense tensors among the trained ones."""
        return {name: trainable[self.embedding_name(name)] for name in self.embedding.dense}

    def base_rows(self, frozen: Tensors, items: Tensor) -> Tensor | None:
        """Rows [..., dim] of the base table for item ids [...]; None for an embedding that uses none."""
        if not self.embedding.uses_base:
            return None
        return frozen[BASE].index_select(0, items.flatten()).reshape(*items.shape, self.embedding.dim)

    def item_vectors(self, trainable: Tensors, frozen: Tensors, items: Tensor) -> Tensor:
        """Vectors [..., dim] of item ids [...], read from whole tables that all users share."""
        flat = items.reshape(-1)
        rows = self.embedding.rows(flat, frozen)
        gathered = {name: table[rows[name]] for name, table in self.tables(trainable).items()}
        vectors = self.embedding.embed(gathered, self.dense(trainable), frozen, self.base_rows(frozen, flat))
        return vectors.reshape(*items.shape, self.embedding.dim)
