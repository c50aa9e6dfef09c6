"""`fedrec export`: item vectors, and what scores read of users, as files that other programs take.

A backbone whose score is an inner product can then be served by any index of vectors; what the files hold is what
`fedrec recommend` scores with.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import torch
from numpy.typing import NDArray
from rich.console import Console

from client_app.answers.recommending import read_by_score, solve
from commands.item_vectors import item_vectors
from commands.places import RecommendError
from commands.recommend import served_by, source_of
from commands.recommendable import Recommendable
from fedrec.core.disk import writing
from fedrec.core.whole_files import replaced

ITEMS, USERS = "items.parquet", "users.parquet"
_USERS_AT_ONCE = 4_096


def export(run: str | None, state_dir: str | None, folder: Path) -> dict[str, Any]:
    """Write the vectors of a model's items, and what its scores read of every user here, into a folder.

    `items.parquet` has the columns `item_id`, `title`, `eligible` (whether it may be recommended) and `vector`;
    `item_vectors.npy` the same vectors, float32 [items, dim], in the same order. `users.parquet` has `user_id` and a
    column for each tensor that the score reads, flattened. In a run with groups a model's vectors are `vector_<group>`
    and `item_vectors_<group>.npy`, and a user's line has the `group` whose model serves it.

    Args:
        run: Folder of a simulated run; or else
        state_dir: that of a site's SuperNode.
        folder: Where the files go; it is made if it is not there.

    Returns:
        What was written, as plain data for JSON.

    Raises RecommendError if the folder has such files already, or a StoreError for files that cannot be used.
    """
    torch.set_num_threads(1)
    source = source_of(run, state_dir)
    names = source.node.setup.groups
    vectors = {
        f"_{names[group]}" if names[group] else "": item_vectors(source, names[group]) for group in source.models
    }
    files = [ITEMS, USERS, *(f"item_vectors{end}.npy" for end in vectors)]
    with writing(f"--out {folder}: the folder", "give another one"):
        folder.mkdir(parents=True, exist_ok=True)
        if there := [name for name in files if (folder / name).exists()]:
            raise RecommendError(f"--out {folder} has {', '.join(there)} already: give another folder, or remove them")
        with replaced(folder / USERS, private=True) as started:
            users, left_out = _write_users(source, started)
        for end, table in vectors.items():
            with replaced(folder / f"item_vectors{end}.npy") as started, started.open("wb") as file:
                np.save(file, table)
        with replaced(folder / ITEMS) as started:
            parquet.write_table(_items(source, vectors), started)
    return {
        "from": source.name,
        "round": source.round,
        "out": str(folder),
        "files": files,
        "items": len(source.items.ids),
        "dim": int(next(iter(vectors.values())).shape[1]),
        "users": users,
        "left_out": left_out,
    }


def show_exported(found: Mapping[str, Any], console: Console) -> None:
    """Say what `export` has done."""
    text = f"{found['items']:,} items with vectors of {found['dim']:,} numbers, and {found['users']:,} users"
    console.print(
        f"{text}: {', '.join(found['files'])} in {found['out']}", soft_wrap=True, highlight=False, markup=False
    )
    console.print(f"from the model of round {found['round']}", highlight=False, markup=False)
    if found["left_out"]:
        why = "whose private tensors are not finite"
        console.print(f"left out: {found['left_out']:,} users, {why}", highlight=False, markup=False)


def _items(source: Recommendable, vectors: Mapping[str, NDArray[np.float32]]) -> pyarrow.Table:
    ids, titles = source.items
    eligible = np.zeros(len(ids), dtype=bool)
    eligible[source.node.sampler.eligible] = True
    columns = {"item_id": list(ids), "title": list(titles), "eligible": eligible}
    return pyarrow.table({**columns, **{f"vector{end}": _lists(table) for end, table in vectors.items()}})


def _lists(table: NDArray[np.float32]) -> pyarrow.FixedSizeListArray:
    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(table.reshape(-1)), table.shape[1])


def _write_users(source: Recommendable, path: Path) -> tuple[int, int]:
    """Write the users' file; how many are in it, and how many could not be."""
    node, names = source.node, source.node.setup.groups
    written = 0
    writer: parquet.ParquetWriter | None = None
    try:
        model_of = served_by(source, node.users.whole(np.arange(len(node.users))), node.groups)
        for group, received in source.models.items():
            slots = np.flatnonzero(model_of == group)
            for start in range(0, len(slots), _USERS_AT_ONCE):
                part = slots[start : start + _USERS_AT_ONCE]
                users = node.users.whole(part)
                solved = solve(node, received, users)
                there = np.flatnonzero(solved.sane)
                if not len(there):
                    continue
                read = read_by_score(received.model.cpu(), users.select(there), solved.private)
                columns: dict[str, Any] = {"user_id": node.users.ids(part[there])}
                if len(names) > 1:
                    columns["group"] = [names[group]] * len(there)
                flat = {name: tensor.detach().float().flatten(1).numpy() for name, tensor in read.items()}
                table = pyarrow.table(columns | {name: _lists(values) for name, values in flat.items()})
                writer = writer or parquet.ParquetWriter(path, table.schema)
                writer.write_table(table)
                written += len(there)
    finally:
        if writer is not None:
            writer.close()
    if writer is None:
        raise RecommendError("none of the users here has finite numbers of its own: nothing to export")
    return written, len(node.users) - written
