"""MovieLens 1M (Harper and Konstan, 2015) as GroupLens publishes it: `ratings.dat` and `movies.dat`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from typing_extensions import override

from fedrec.core.registry import datasets
from fedrec.data.archive import Files, delimited
from fedrec.data.collect import Malformed, sentence
from fedrec.datasets.base import RawItem
from fedrec.datasets.movielens import MovieLens, MovieLensConfig


@dataclass(frozen=True)
class MovieLens1MConfig(MovieLensConfig):
    """Configuration of `ml_1m`."""

    name: Literal["ml_1m"]


@datasets.register("ml_1m")
class MovieLens1M(MovieLens):
    """6,040 users, 3,883 listed movies of which 3,706 are rated, 1,000,209 ratings."""

    config_class = MovieLens1MConfig
    archive, ratings, movies, separator = "ml-1m", "ratings.dat", "movies.dat", "::"

    @override
    def listed(self, files: Files, malformed: Malformed) -> list[RawItem]:
        return [
            RawItem(movie, title, sentence((title, genres.split("|"))))
            for _, (movie, title, genres) in delimited(files, self.movies, "::", 3, malformed)
        ]
