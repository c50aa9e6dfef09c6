"""`fedrec data`: what a data set is, before anything is trained on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from fedrec.core.registry import datasets
from fedrec.data import report
from fedrec.data.prepare import prepare
from fedrec.data.split import evaluated
from fedrec.data.types import Dataset
from fedrec.datasets.base import DatasetConfig, Progress, RawData, silent

QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)
_POPULAR = (0.01, 0.1)
_FIRST, _LAST = datetime(1970, 1, 2, tzinfo=UTC).timestamp(), datetime(2200, 1, 1, tzinfo=UTC).timestamp()


@dataclass(frozen=True)
class DataFacts:
    """What is told of a data set.

    Attributes:
        data: The prepared data, with the report of their preparation.
        per_user: Interactions of a user at each of `QUANTILES`.
        per_item: The same of an item that has any.
        popular: The share of all interactions that so many of the most popular items have.
        ranked: Users with enough interactions to be ranked.
        once: Items with one interaction.
        without_text: Items of the catalogue whose text is empty.
        times: The first and the last time, as the data have them; None without times.
        ratings: The lowest, the mean and the highest rating; None without ratings.
    """

    data: Dataset
    per_user: Sequence[float]
    per_item: Sequence[float]
    popular: Mapping[int, float]
    ranked: int
    once: int
    without_text: int
    times: tuple[float, float] | None
    ratings: tuple[float, float, float] | None

    def as_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return {
            "name": self.data.name,
            **report.as_dict(self.data.report),
            "catalogue": len(self.data.catalogue),
            "per_user": dict(zip(map(str, QUANTILES), self.per_user, strict=True)),
            "per_item": dict(zip(map(str, QUANTILES), self.per_item, strict=True)),
            "popular": {str(most): part for most, part in self.popular.items()},
            "ranked_users": self.ranked,
            "items_with_one_interaction": self.once,
            "items_without_text": self.without_text,
            "times": None if self.times is None else list(self.times),
            "ratings": None if self.ratings is None else list(self.ratings),
        }


def data_facts(config: DatasetConfig, progress: Progress = silent) -> DataFacts:
    """Read and prepare the data set that `config` names, and look at it. Raises DataError as a run would."""
    raw = datasets.get(config.name)(config).read(progress)
    return facts_of(raw, prepare(raw, config))


def facts_of(raw: RawData, data: Dataset) -> DataFacts:
    """What is told of the prepared data; times and ratings are those of the data as they were read."""
    lengths = np.diff(data.interactions.offsets)
    counts = np.bincount(data.interactions.items, minlength=len(data.catalogue))
    counts = np.sort(counts[counts > 0])[::-1]
    return DataFacts(
        data=data,
        per_user=_quantiles(lengths),
        per_item=_quantiles(counts),
        popular={most: float(counts[:most].sum() / counts.sum()) for most in _popular(len(counts))},
        ranked=int(np.count_nonzero(evaluated(data.interactions, of="test"))),
        once=int(np.count_nonzero(counts == 1)),
        without_text=sum(not sentence.strip() for sentence in data.catalogue.sentences),
        times=None if raw.times is None else (float(raw.times.min()), float(raw.times.max())),
        ratings=None
        if raw.ratings is None
        else (float(raw.ratings.min()), float(raw.ratings.mean()), float(raw.ratings.max())),
    )


def show_data_facts(found: DataFacts, console: Console) -> None:
    """Print the report of the preparation, and below it what the prepared data are like."""
    console.print(report.as_table(found.data.report, f"Data: {found.data.name}"))
    table = Table(title="After preparation", title_justify="left")
    for head in ("interactions", "least", "10 %", "median", "90 %", "most"):
        table.add_column(head, justify="right" if head != "interactions" else "left")
    for name, values in (("of a user", found.per_user), ("of an item that has any", found.per_item)):
        table.add_row(name, *(f"{value:,.0f}" for value in values))
    console.print(table)
    items, popular = len(found.data.catalogue), found.popular.items()
    lines = [
        f"{found.ranked:,} of {found.data.interactions.users:,} users have an item to be tested with",
        f"{found.once:,} items have a single interaction; {items:,} are in the catalogue",
        *(f"the {most:,} most popular items have {part:.0%} of the interactions" for most, part in popular),
        f"{found.without_text:,} of {items:,} items have no text{_no_text(found)}",
        f"times: {_span(found.times)}",
        f"ratings: {_ratings(found.ratings)}",
    ]
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _popular(items: int) -> list[int]:
    """How many items a hundredth and a tenth of them are; at least one."""
    return sorted({max(1, round(share * items)) for share in _POPULAR})


def _quantiles(counts: NDArray[np.int64]) -> list[float]:
    return [float(value) for value in np.quantile(counts, QUANTILES, method="inverted_cdf")]


def _no_text(found: DataFacts) -> str:
    if found.without_text < len(found.data.catalogue):
        return ""
    return ": a base table cannot be made of it; bring an item table, or take base_table.start=random"


def _span(times: tuple[float, float] | None) -> str:
    if times is None:
        return "none: interactions keep the order of the file"
    if times[0] == times[1]:
        return f"one and the same for all interactions ({times[0]:g}): the order of the file decides"
    if not _FIRST <= times[0] <= times[1] < _LAST:  # days, steps, or anything else that only orders
        return f"{times[0]:,g} to {times[1]:,g}"
    first, last = (datetime.fromtimestamp(time, UTC).date().isoformat() for time in times)
    return f"{first} to {last}, if they are seconds since 1970"


def _ratings(ratings: tuple[float, float, float] | None) -> str:
    if ratings is None:
        return "none: every interaction counts"
    return f"{ratings[0]:g} to {ratings[2]:g}, {ratings[1]:.2f} on average; dataset.min_rating leaves the low ones out"
