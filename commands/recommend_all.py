"""`fedrec recommend --all`: the best items of every user whose history is here, into one file."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from client_app.answers.recommending import NOTHING, Recommended
from client_app.answers.recommending import recommend as best
from client_app.homes.users import Cohort
from commands.places import RecommendError
from commands.recommend import served_by, source_of
from commands.recommendable import Recommendable
from fedrec.core.disk import writing
from fedrec.core.errors import StoreError
from fedrec.core.whole_files import replaced

log = logging.getLogger("fedrec")

COLUMNS = ("user_id", "rank", "item_id", "title", "score")
_USERS_AT_ONCE = 16_384

Rows = Sequence[tuple[str, int, str, str, float]]
Line = tuple[int, str, str, float]
"""What the file has of one item of a user: all of `COLUMNS` but the first."""


def recommend_all(run: str | None, state_dir: str | None, top: int, out: str) -> dict[str, Any]:
    """Write the `top` items of every user, best first, to a CSV or Parquet file with the columns of `COLUMNS`.

    Args:
        run: Folder of a simulated run; or else
        state_dir: that of a site's SuperNode.
        top: How many items of each user; of one who has fewer left, all of them.
        out: The file; its name ends in `.csv` or `.parquet`. It appears whole or not at all.

    Returns:
        What was done, as plain data for JSON: how many users are in the file, how many of them never trained, and who
        was left out, by reason.

    Raises RecommendError, or a StoreError for files that cannot be used.
    """
    path = Path(out)
    writer = _WRITERS.get(path.suffix.lower())
    if writer is None:
        raise RecommendError(f"--out {out}: expected the name of a .csv or .parquet file")
    torch.set_num_threads(1)
    source = source_of(run, state_dir)
    node = source.node
    served, cold, left_out = 0, 0, {"diverged": 0, "nothing_left": 0}
    model_of = served_by(source, node.users.whole(np.arange(len(node.users))), node.groups)
    with writing(f"--out {out}: the file", "give another one"), replaced(path) as started, writer(started) as write:
        for group in np.unique(model_of).tolist():
            slots = np.flatnonzero(model_of == group)
            for start in range(0, len(slots), _USERS_AT_ONCE):
                part = slots[start : start + _USERS_AT_ONCE]
                users = node.users.whole(part)
                if source.keys is not None and not np.isin(users.keys, source.keys).all():
                    raise StoreError(
                        f"{source.name}: the checkpoint of round {source.round} does not know all users of the data: "
                        "setup.json or the checkpoint are not those of this run; restore the run folder from a copy"
                    )
                lines, found = lines_of(source, group, users, top)
                names = node.users.ids(part)
                write([(name, *line) for name, mine in zip(names, lines, strict=True) for line in mine])
                listed = np.array([bool(mine) for mine in lines])
                served += int(listed.sum())
                cold += int((listed & ~found.trained).sum())
                left_out["diverged"] += int((~found.sane).sum())
                left_out["nothing_left"] += int((found.sane & ~listed).sum())
        if not served:
            raise RecommendError(f"none of the {len(node.users):,} users here can be recommended anything: {left_out}")
    return {
        "from": source.name,
        "round": source.round,
        "passed_over": list(source.passed_over),
        "out": out,
        "users": served,
        "never_trained": cold,
        "left_out": {reason: count for reason, count in left_out.items() if count},
    }


def lines_of(source: Recommendable, group: int, users: Cohort, top: int) -> tuple[list[list[Line]], Recommended]:
    """The `top` items of each of some users, by the model of a group, best first, by name; and how they were found."""
    found = best(source.node, source.model_of(group), users, top)
    ids, titles = source.items
    lines = [
        [(rank, ids[row], titles[row], score) for rank, (row, score) in enumerate(mine, 1) if row != NOTHING]
        for mine in (
            zip(rows, scores, strict=True)
            for rows, scores in zip(found.rows.tolist(), found.scores.tolist(), strict=True)
        )
    ]
    return lines, found


def show_written(found: Mapping[str, Any], console: Console) -> None:
    """Say what `recommend_all` has done."""
    cold = f", {found['never_trained']:,} of whom never trained" if found["never_trained"] else ""
    console.print(f"{found['users']:,} users{cold}: {found['out']}", highlight=False, markup=False)
    newer = "; newer ones are damaged" if found["passed_over"] else ""
    console.print(f"from the model of round {found['round']}{newer}", highlight=False, markup=False)
    for reason, count in found["left_out"].items():
        console.print(f"left out: {count:,} users, {_REASONS[reason]}", highlight=False, markup=False)


_REASONS = {
    "diverged": "whose private tensors are not finite",
    "nothing_left": "who know every item that may be recommended",
}


@contextmanager
def _csv(path: Path) -> Iterator[Callable[[Rows], None]]:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        yield writer.writerows


@contextmanager
def _parquet(path: Path) -> Iterator[Callable[[Rows], None]]:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    types = (arrow.string(), arrow.int32(), arrow.string(), arrow.string(), arrow.float32())
    schema = arrow.schema(list(zip(COLUMNS, types, strict=True)))
    with parquet.ParquetWriter(path, schema) as writer:

        def write(lines: Rows) -> None:
            columns = list(zip(*lines, strict=True)) or [()] * len(COLUMNS)
            writer.write_table(arrow.Table.from_arrays(list(map(arrow.array, columns, types)), schema=schema))

        yield write


_WRITERS = {".csv": _csv, ".parquet": _parquet}
