"""What the MovieLens archives of GroupLens share: where they come from, and one line a rating."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from annotated_types import Gt, Le
from pydantic import Strict
from typing_extensions import override

from fedrec.data.archive import Files, default_root, delimited, find
from fedrec.data.collect import Malformed, Row, collect, with_items
from fedrec.data.download import download
from fedrec.datasets.base import DatasetConfig, DatasetSource, Progress, RawData, RawItem


@dataclass(frozen=True)
class MovieLensConfig(DatasetConfig):
    """Configuration of a MovieLens archive.

    Attributes:
        root: Absolute path of the folder with the files, of a folder with the zip, or of the zip; where there is
            nothing, the archive is fetched to (null: a folder of fedrec's own).
        url: Where the archive is fetched from.
        md5: Its checksum.
        timeout: Seconds without an answer after which fetching is given up.
    """

    root: Annotated[Path, Strict(False)] | None
    url: str
    md5: str
    timeout: Annotated[float, Gt(0), Le(1_000_000)]


class MovieLens(DatasetSource):
    """An archive of ratings and movies, fetched on first use (Harper and Konstan, 2015)."""

    config: MovieLensConfig

    archive: ClassVar[str]
    """Name of the archive and of the folder in it."""
    ratings: ClassVar[str]
    movies: ClassVar[str]
    separator: ClassVar[str]
    """Between the fields of a rating."""

    @abstractmethod
    def listed(self, files: Files, malformed: Malformed) -> list[RawItem]:
        """The listed movies."""

    @override
    def read(self, progress: Progress) -> RawData:
        """Read the archive or folder, fetching it first where there is none. Raises DataError."""
        config = self.config
        files = find(
            config.root or default_root(self.archive),
            self.archive,
            (self.ratings, self.movies),
            lambda target: download(config.url, target, config.md5, config.timeout, progress),
        )
        bad, bad_items = Malformed(config.malformed), Malformed(config.malformed)
        raw = collect(lambda: f"{files.label(self.ratings)}, line", self._rows(files, bad), bad, timed=True, rated=True)
        return with_items(raw, self.listed(files, bad_items), {"malformed_item": bad_items.count})

    def _rows(self, files: Files, malformed: Malformed) -> Iterator[Row]:
        for line, (user, movie, rating, time) in delimited(files, self.ratings, self.separator, 4, malformed):
            yield line, (user, movie, time, rating)
