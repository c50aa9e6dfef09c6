"""How many rows of its tables a user changes in a round, where the recipe says so beforehand."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fedrec.optim.base import Recipe
from fedrec.stages.base import Stage
from peft_embeddings.model import Model


def most_changed(model: Model, recipe: Recipe, privacy: Stage) -> Mapping[str, int] | None:
    """The most rows of each table that a user changes, by the names under which the tables travel.

    It reads the items of its window, or of its contexts, and its negatives, and each of them some rows. None: nobody
    knows, because a user reads its whole history, or because a mechanism changes other rows too.
    """
    window, contexts, embedding = recipe.window, recipe.contexts, model.embedding
    if privacy.reads in ("rows", "dense") or embedding.counts:
        return None
    if contexts is not None:
        positives, pairs = contexts.most_items, contexts.count * contexts.longest
    elif window is not None:
        positives = pairs = window.length
    else:
        return None
    draws = 1 if recipe.shared_negatives else pairs
    if recipe.fresh_negatives:
        draws *= sum(step.shared for step in recipe.local_steps())
    items = min(embedding.n_items, positives + recipe.negatives * draws)
    frozen = {name: spec.zeros() for name, spec in embedding.frozen.items()}
    read = embedding.rows(torch.zeros(1, dtype=torch.int64), frozen)
    return {
        model.embedding_name(name): min(spec.rows, items * read[name].shape[-1])
        for name, spec in embedding.tables.items()
    }
