"""The contract of a data set: read one form of data into plain columns; everything after that is shared.

`fedrec.data.prepare` turns the columns into a `Dataset`: it filters, orders, removes duplicates, and counts it all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from annotated_types import Ge, Gt, Le, Lt
from numpy.typing import NDArray

from fedrec.core.errors import DataError
from fedrec.core.registry import MemberConfig


@dataclass(frozen=True)
class DatasetConfig(MemberConfig):
    """What every data set's configuration has.

    Attributes:
        k_core: Users and items with fewer interactions are removed, again and again until none is left (0: keep all).
        min_rating: Interactions with a lower rating are left out (null: any rating is an interaction).
        malformed: `error` stops at a line that cannot be read, naming it; `skip` leaves it out and counts it.
        items: Rows of the catalogue: all `listed` items, or only the `rated` ones (with at least one interaction left).
        split: What is held out: each user's last two items (`leave_one_out`), or what comes after a moment that is the
            same for all (`temporal`; simulation only).
        held_out: With `temporal` the share of the interactions, the latest, that are for test; as many before these are
            for validation.
    """

    k_core: Annotated[int, Ge(0), Le(1_000_000_000)]
    min_rating: Annotated[float, Ge(-1e9), Le(1e9)] | None
    malformed: Literal["error", "skip"]
    items: Literal["listed", "rated"]
    # With defaults: a run of old has neither in its folder.
    split: Literal["leave_one_out", "temporal"] = field(default="leave_one_out", kw_only=True)
    held_out: Annotated[float, Gt(0), Lt(0.5)] = field(default=0.1, kw_only=True)


@dataclass(frozen=True)
class RawItem:
    """One listed item as its source describes it."""

    item_id: str
    title: str
    sentence: str


@dataclass(frozen=True)
class IdColumn:
    """A column of external ids: every id is kept once as text, and every interaction holds its number.

    Attributes:
        codes: int32 [interactions], positions in `labels`.
        labels: The distinct ids, as text; some may not occur.
    """

    codes: NDArray[np.int32]
    labels: Sequence[str]

    def __len__(self) -> int:
        return len(self.codes)


@dataclass(frozen=True)
class RawData:
    """Interactions in file order, and the listed items (None: the source lists none, every item that occurs is known).

    Attributes:
        users: Who.
        items: What.
        times: float64 or int64 array [interactions], finite, or None: the order in the file is the order in time.
        ratings: float64 array [interactions], finite, or None.
        listed: Items with their text, in the source's order; an id that comes again is left out and counted later.
        counts: What the reader left out, by name (`malformed`, `malformed_item`, `unrated_item`).
    """

    users: IdColumn
    items: IdColumn
    times: NDArray[np.int64] | NDArray[np.float64] | None
    ratings: NDArray[np.float64] | None
    listed: tuple[RawItem, ...] | None
    counts: dict[str, int] = field(default_factory=dict)


class LastChances(NamedTuple):
    """The truth behind the last interaction of every user of made-up data.

    Attributes:
        users: Ids of users.
        items: Ids of all listed items.
        chances: float64 [users, items], how likely each item was; of items that a user had before they say nothing.
    """

    users: Sequence[str]
    items: Sequence[str]
    chances: NDArray[np.float64]


Progress = Callable[[str, int, int], None]
"""Called with (what, done, total) while something long is read or fetched; a total of 0 is not known."""


def silent(what: str, done: int, total: int) -> None:
    """The `Progress` that shows nothing."""


class DatasetSource(ABC):
    """Reads one form of data; a member of the family `dataset`."""

    config_class: ClassVar[type[DatasetConfig]]

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def read(self, progress: Progress) -> RawData:
        """Read everything. Raises DataError, naming file, line, what came and what was expected."""

    def list_items(self, progress: Progress) -> tuple[tuple[RawItem, ...], dict[str, int]]:
        """The items alone, without reading anybody's interactions, and what was left out, by name.

        Raises DataError, also if this form of data cannot be read so.
        """
        raise DataError(
            f"dataset={self.config.name} has no list of items apart from the interactions, and a deployment reads "
            "nobody's: give its items as a table, dataset=table dataset.item_table=..."
        )

    def last_chances(self) -> LastChances | None:
        """What each user's last item was drawn by, where data are made up; None where nobody knows it."""
        return None
