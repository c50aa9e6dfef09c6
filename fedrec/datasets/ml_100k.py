"""MovieLens 100K (Harper and Konstan, 2015) as GroupLens publishes it: `u.data` and `u.item`."""

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

GENRES = [
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
]
"""What the flags at the end of a line of `u.item` stand for, in order."""

_ATTRIBUTES = 5  # id, title, release date, video release date, address


@dataclass(frozen=True)
class MovieLens100KConfig(DatasetConfig):
    """Configuration of `ml_100k`.

    Attributes:
        root: Absolute path of the folder with the files, of a folder with the zip, or of the zip; where there is
            nothing, the archive is fetched to (null: a folder of fedrec's own).
        url: Where the archive is fetched from.
        md5: Its checksum.
        timeout: Seconds without an answer after which fetching is given up.
    """

    name: Literal["ml_100k"]
    root: Annotated[Path, Strict(False)] | None
    url: str
    md5: str
    timeout: Annotated[float, Gt(0)]


@datasets.register("ml_100k")
class MovieLens100K(DatasetSource):
    """943 users, 1,682 movies, 100,000 ratings."""

    config_class = MovieLens100KConfig
    config: MovieLens100KConfig

    def read(self, progress: Progress) -> RawData:
        """Read the archive or folder, fetching it first where there is none. Raises DataError."""
        config = self.config
        root = config.root or default_root("ml-100k")
        files = find(
            root,
            "ml-100k",
            ("u.data", "u.item"),
            lambda target: download(config.url, target, config.md5, config.timeout, progress),
        )
        bad, bad_items = Malformed(config.malformed), Malformed(config.malformed)
        raw = collect(f"{files.label('u.data')}, line", _ratings(files, bad), bad, timed=True, rated=True)
        listed = [
            RawItem(fields[0], fields[1], sentence((fields[1], _genres(fields[_ATTRIBUTES:]))))
            for _, fields in delimited(files, "u.item", "|", _ATTRIBUTES + len(GENRES), bad_items)
        ]
        return with_items(raw, listed, {"malformed_item": bad_items.count})


def _genres(flags: list[str]) -> list[str]:
    return [genre for genre, flag in zip(GENRES, flags, strict=True) if flag == "1"]


def _ratings(files: Files, malformed: Malformed) -> Iterator[Row]:
    for line, (user, movie, rating, time) in delimited(files, "u.data", "\t", 4, malformed):
        yield line, (user, movie, time, rating)
