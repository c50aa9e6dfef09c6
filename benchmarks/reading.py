"""How long a large table of ratings takes to be read and prepared, in blocks and line by line, and in how much memory.

The rows are those of MovieLens 100K over and over, each time with other users: real ids, ratings and times, unsorted.
Seconds are those of a wall clock and of the processor, with whatever threads pyarrow takes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from benchmarks.common import Options, case, options, write
from benchmarks.rendering import gib, number, table

_HEADER = "user_id,item_id,rating,timestamp\n"


def ratings(data: Path, cache: Path, copies: int) -> Path:
    """A file of so many copies of MovieLens 100K, made once."""
    path = cache / f"ratings-{copies}.csv"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        rows = [line.split() for line in (data / "ml-100k" / "u.data").read_text().splitlines()]
        part = path.with_suffix(".part")
        with part.open("w") as file:
            file.write(_HEADER)
            for copy in range(copies):
                file.writelines(f"{copy}-{user},{item},{stars},{when}\n" for user, item, stars, when in rows)
        part.replace(path)
    return path


def made_up(cache: Path) -> Path:
    """A small file of the same form, for a test."""
    path = cache / "ratings-small.csv"
    cache.mkdir(parents=True, exist_ok=True)
    lines = (f"{n % 40},{n * 7 % 90},{1 + n % 5},{10_000 + n * 131 % 7_001}\n" for n in range(3_000))
    path.write_text(_HEADER + "".join(lines))
    return path


def read(path: str, at_once: bool) -> dict[str, Any]:
    """Read and prepare a file; how long both took, and what came of it."""
    from fedrec.config.describe import load_member
    from fedrec.core.registry import datasets
    from fedrec.data.delimited import DelimitedFile
    from fedrec.data.prepare import prepare
    from fedrec.datasets.base import DatasetConfig

    DelimitedFile.at_once_from = 0 if at_once else 2**62
    config = cast(DatasetConfig, load_member("dataset", "table", interactions=path, rating_column="rating"))
    started = time.perf_counter(), time.process_time()
    raw = datasets.get("table")(config).read(lambda *_: None)
    between = time.perf_counter(), time.process_time()
    data = prepare(raw, config)
    ended = time.perf_counter(), time.process_time()
    return {
        "rows": data.report.before.interactions,
        "users": data.report.before.users,
        "read_seconds": between[0] - started[0],
        "read_processor": between[1] - started[1],
        "prepare_seconds": ended[0] - between[0],
        "prepare_processor": ended[1] - between[1],
    }


def rendered(result: dict[str, Any]) -> str:
    """The block of the document that shows a result."""
    rows = [
        [
            f"{entry['rows']:,}",
            "in blocks" if entry["at_once"] else "line by line",
            *(number(entry[name]) for name in ("read_seconds", "read_processor", "prepare_seconds")),
            number(entry["prepare_processor"]),
            gib(entry),
        ]
        for entry in result["figures"]["cases"]
    ]
    head = ["rows", "read", "reading, s", "CPU s", "preparing, s", "CPU s", "peak memory"]
    ratio = result["figures"]["ratio"]
    return table(head, rows) + f"\nReading in blocks takes {number(1 / ratio)} of the processor's time by lines.\n"


BLOCKS = {"reading": rendered}
"""What the documents show of a result, by the name of the block."""


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    opts: Options = options(
        "reading", __doc__, arguments, lambda parser: parser.add_argument("--synthetic", action="store_true")
    )
    few, many = (50, 250) if opts.full else (1, 1)
    paths = (
        [made_up(opts.cache)] * 2 if opts.extra.synthetic else [ratings(opts.data, opts.cache, n) for n in (few, many)]
    )
    asked = [(paths[0], False), (paths[0], True), (paths[1], True)]
    cases = [
        {"at_once": at_once, **case("benchmarks.reading:read", path=str(path), at_once=at_once)}
        for path, at_once in asked
    ]
    ratio = cases[0]["read_processor"] / max(1e-9, cases[1]["read_processor"])
    configuration = {"data": "made up" if opts.extra.synthetic else "ml-100k, copied"}
    return write(opts, "reading", configuration, {"cases": cases, "ratio": ratio})


if __name__ == "__main__":
    main()
