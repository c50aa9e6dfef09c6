"""Tables that a program hands over in memory, kept as files so that a run can be made again from them."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet

from fedrec.config.paths import home
from fedrec.core.disk import writing
from fedrec.core.errors import DataError
from fedrec.core.whole_files import write_bytes


def kept_frame(frame: Any, what: str) -> Path:
    """The Parquet file in the cache that holds a table; the same content has the same file.

    Args:
        frame: What speaks Arrow (`__arrow_c_stream__`): a frame of pandas or polars, a table of pyarrow, ...
        what: What it is, for the message.

    Raises DataError if it is no table, or has columns that a Parquet file cannot hold.
    """
    if not hasattr(frame, "__arrow_c_stream__"):
        raise DataError(
            f"{what}: expected a table that speaks Arrow, such as a pandas, polars or pyarrow one, got "
            f"{type(frame).__name__}; a file is named in dataset.interactions and dataset.item_table"
        )
    data = io.BytesIO()
    try:
        parquet.write_table(pyarrow.table(frame), data)
    except (pyarrow.ArrowException, TypeError, ValueError) as error:
        raise DataError(f"{what}: the table cannot be kept as a Parquet file: {error}") from error
    folder = home() / "cache" / "frames"
    path = folder / f"{hashlib.sha256(data.getbuffer()).hexdigest()[:32]}.parquet"
    with writing(f"the table of {what} in {folder}", "set FEDREC_HOME to a folder with room"):
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_bytes(path, data.getvalue())
    return path
