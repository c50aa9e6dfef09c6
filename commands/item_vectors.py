"""The vectors of a model's items, and which items are alike by them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from commands.places import RecommendError
from commands.recommend import items_table, near_items, source_of
from commands.recommendable import Recommendable


def item_vectors(source: Recommendable, group: str = "") -> NDArray[np.float32]:
    """The vectors of all items, float32 [items, dim], by row of the model; in a run with groups, those of one.

    Raises RecommendError if there is no such group, or no model of it here.
    """
    groups = source.node.setup.groups
    if group not in groups:
        raise RecommendError(_group_problem(group, groups))
    model = source.model_of(groups.index(group)).model.cpu()
    vectors = model.item_vectors(model.trainable, torch.arange(source.node.setup.n_items))
    found: NDArray[np.float32] = vectors.detach().float().numpy()
    return found


def most_similar(source: Recommendable, row: int, top: int, group: str = "") -> tuple[list[int], list[float]]:
    """The rows of the `top` items whose vectors point most nearly where that of `row` does, and their cosines.

    They are among the items that may be recommended, best first; of equal ones the first of the catalogue.
    """
    vectors = item_vectors(source, group)
    lengths = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    unit = vectors / lengths
    similarity = unit @ unit[row]
    others = source.node.sampler.eligible
    others = others[others != row]
    best = others[np.argsort(-similarity[others], kind="stable")[:top]]
    return best.tolist(), similarity[best].tolist()


def similar(run: str | None, state_dir: str | None, item: str, top: int, group: str) -> dict[str, Any]:
    """What `fedrec similar` tells, as plain data for JSON.

    Args:
        run: Folder of a simulated run; or else
        state_dir: that of a site's SuperNode.
        item: The item's id.
        top: How many items.
        group: Whose vectors; empty in a run without groups.

    Raises RecommendError, or a StoreError for files that cannot be used.
    """
    torch.set_num_threads(1)
    source = source_of(run, state_dir)
    ids, titles = source.items
    if item not in ids:
        raise RecommendError(f"--item {item}: there is no such item{near_items(item, source.items)}")
    row = ids.index(item)
    rows, cosines = most_similar(source, row, top, group)
    return {
        "from": source.name,
        "round": source.round,
        "item_id": item,
        "title": titles[row],
        "items": [
            {"item_id": ids[other], "title": titles[other], "similarity": cosine}
            for other, cosine in zip(rows, cosines, strict=True)
        ],
    }


def show_similar(found: Mapping[str, Any], console: Console) -> None:
    """Print what `similar` has found as a table."""
    console.print(items_table(f"Like {found['item_id']}: {found['title']}", found["items"], "similarity"))
    console.print(f"by the vectors of the model of round {found['round']}", highlight=False, markup=False)


def _group_problem(group: str, groups: tuple[str, ...]) -> str:
    if len(groups) == 1:
        return f"group {group}: the run has no groups; leave it out"
    asked = f"group {group}: the run has no such group" if group else "the run has a model for each of its groups"
    return f"{asked}; name one of {', '.join(groups)}"
