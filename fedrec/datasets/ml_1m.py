"""MovieLens 1M (Harper and Konstan, 2015) as GroupLens publishes it: `ratings.dat` and `movies.dat`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Gt
from pydantic import Strict

from fedrec.data.archive import Files, default_root, delimited, find
from fedrec.data.collect import Malformed, Row, collect, sentence, with_items
from fedrec.data.download import download
from fedrec.datasets.base import DatasetConfig, DatasetSource, Progress, RawData, RawItem
from fedrec.registry import datasets


@dataclass(frozen=True)
class MovieLens1MConfig(DatasetConfig):
    """Configuration of `ml_1m`.

    Attributes:
        root: Absolute path of the folder with the files, of a folder with the zip, or of the zip; where there is
            nothing, the archive is fetched to (null: a folder of fedrec's own).
        url: Where the archive is fetched from.
        md5: Its checksum.
        timeout: Seconds without an answer after which fetching is given up.
    """

    name: Literal["ml_1m"]
    root: Annotated[Path, Strict(False)] | None
    url: str
    md5: str
    timeout: Annotated[float, Gt(0)]


@datasets.register("ml_1m")
class MovieLens1M(DatasetSource):
    """6,040 users, 3,883 listed movies of which 3,706 are rated, 1,000,209 ratings."""

    config_class = MovieLens1MConfig
    config: MovieLens1MConfig

    def read(self, progress: Progress) -> RawData:
        """Read the archive or folder, fetching it first where there is none. Raises DataError."""
        config = self.config
        root = config.root or default_root("ml-1m")
        files = find(
            root,
            "ml-1m",
            ("ratings.dat", "movies.dat"),
            lambda target: download(config.url, target, config.md5, config.timeout, progress),
        )
        bad, bad_items = Malformed(config.malformed), Malformed(config.malformed)
        raw = collect(f"{files.label('ratings.dat')}, line", _ratings(files, bad), bad, timed=True, rated=True)
        listed = [
            RawItem(movie, title, sentence((title, genres.split("|"))))
            for _, (movie, title, genres) in delimited(files, "movies.dat", "::", 3, bad_items)
        ]
        return with_items(raw, listed, {"malformed_item": bad_items.count})


def _ratings(files: Files, malformed: Malformed) -> Iterator[Row]:
    for line, (user, movie, rating, time) in delimited(files, "ratings.dat", "::", 4, malformed):
        yield line, (user, movie, time, rating)
