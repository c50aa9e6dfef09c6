"""MovieLens 100K (Harper and Konstan, 2015) as GroupLens publishes it: `u.data` and `u.item`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from typing_extensions import override

from fedrec.core.registry import datasets
from fedrec.data.archive import Files, delimited
from fedrec.data.collect import Malformed, sentence
from fedrec.datasets.base import RawItem
from fedrec.datasets.movielens import MovieLens, MovieLensConfig

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
class MovieLens100KConfig(MovieLensConfig):
    """Configuration of `ml_100k`."""

    name: Literal["ml_100k"]


@datasets.register("ml_100k")
class MovieLens100K(MovieLens):
    """943 users, 1,682 movies, 100,000 ratings."""

    config_class = MovieLens100KConfig
    archive, ratings, movies, separator = "ml-100k", "u.data", "u.item", "\t"

    @override
    def listed(self, files: Files, malformed: Malformed) -> list[RawItem]:
        return [
            RawItem(fields[0], fields[1], sentence((fields[1], _genres(fields[_ATTRIBUTES:]))))
            for _, fields in delimited(files, self.movies, "|", _ATTRIBUTES + len(GENRES), malformed)
        ]


def _genres(flags: list[str]) -> list[str]:
    return [genre for genre, flag in zip(GENRES, flags, strict=True) if flag == "1"]
