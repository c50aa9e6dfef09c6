"""Items that come after the training: a trained model for a larger catalogue, with nothing trained anew.

A new item's row of the base table is made from its text (`peft_embeddings.text_map.TextMap`). What is compressed then
follows from that row: a low-rank correction of zero, the code that the quantiser gives it, or the rows that the hash
functions name, which it shares with whatever items were hashed there. New items take the rows after the last one.

Embeddings that stand alone know an item's text only through a semantic start: with a random one, a low-rank or hashed
vector of a new item is as good as chance.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from fedrec.core.tensors import Tensors
from peft_embeddings.model import BASE, Model


class Grown(NamedTuple):
    """A model of more items, its trained tensors and its frozen ones: what a device needs to score all of them."""

    model: Model
    trainable: Tensors
    frozen: Tensors


def grow(model: Model, trainable: Tensors, frozen: Tensors, kept: Tensors, vectors: Tensor) -> Grown:
    """The model with m more items; those that it has keep their vectors, to the bit.

    Args:
        model: A model of n items.
        trainable: Its trained tensors, at any point of the training.
        frozen: Its frozen tensors.
        kept: What the server has kept of its start (`kept.*` in a checkpoint).
        vectors: float32 [m, dim], base vectors of the new items; their rows will be n to n + m - 1.
    """
    embedding = model.embedding
    own = {**model.tables(trainable), **model.dense(trainable), **frozen, **kept}
    made = embedding.grow(own, vectors)
    later = {name: made.pop(name) for name in embedding.frozen}
    if embedding.uses_base:
        later[BASE] = torch.cat([frozen[BASE], vectors])
    larger = replace(
        model, embedding=type(embedding)(embedding.config, embedding.n_items + len(vectors), embedding.dim)
    )
    return Grown(larger, model.named(made, model.shared(trainable)), later)


def item_vectors_for_new(model: Model, trainable: Tensors, frozen: Tensors, kept: Tensors, vectors: Tensor) -> Tensor:
    """Vectors [m, dim] of m new items, as `grow` describes them, from their base vectors [m, dim]."""
    grown = grow(model, trainable, frozen, kept, vectors)
    first = model.embedding.n_items
    return grown.model.item_vectors(grown.trainable, grown.frozen, torch.arange(first, first + len(vectors)))
