"""A catalogue and users' interactions as the files that `dataset=table` and sites read."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedrec.data.types import Catalogue, Interactions


def write_items(catalogue: Catalogue, path: Path) -> None:
    """Write ids, titles and texts: the columns `item_id`, `title` and `text`."""
    columns = (catalogue.item_ids, catalogue.titles, catalogue.sentences)
    _write(path, ("item_id", "title", "text"), zip(*columns, strict=True))


def write_interactions(
    catalogue: Catalogue, interactions: Interactions, path: Path, users: NDArray[np.integer] | None = None
) -> None:
    """Write the interactions of some users (None: of all), their places as times."""
    chosen = np.arange(interactions.users) if users is None else users
    rows = (
        (interactions.user_ids[user], catalogue.item_ids[item], time)
        for user in chosen.tolist()
        for time, item in enumerate(interactions.history(user).tolist())
    )
    _write(path, ("user_id", "item_id", "timestamp"), rows)


def _write(path: Path, names: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(rows)
