"""What a run starts from."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fedrec.core.errors import DataError
from fedrec.data.types import Catalogue, DataReport, Dataset, DataSummary, Interactions
from server_app.setup import require_rankable


def dataset(lengths: list[int]) -> Dataset:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    users = tuple(f"u{number}" for number in range(len(lengths)))
    interactions = Interactions(users, offsets, np.zeros(offsets[-1], dtype=np.int32))
    size = DataSummary(len(users), 1, int(offsets[-1]))
    return Dataset(
        "table", Catalogue(("i",), ("I",), ("",)), interactions, np.zeros(1, np.int32), DataReport(size, size, {})
    )


def test_a_run_in_which_nobody_could_be_ranked_is_refused_before_it_trains() -> None:
    with pytest.raises(DataError, match=r"no user has 3 interactions .* \(the most are 2\)"):
        require_rankable(dataset([1, 2, 2]), validated=True)
    require_rankable(dataset([1, 2, 3]), validated=True)


def test_of_a_split_by_time_what_is_not_ranked_need_not_be_there() -> None:
    """The only user has an item after the second moment, and none between the two."""
    one = dataset([3])
    one = dataclasses.replace(one, interactions=dataclasses.replace(one.interactions, cuts=np.array([[2, 2]])))
    require_rankable(one, validated=False)
    with pytest.raises(DataError, match="no user with an interaction for validation"):
        require_rankable(one, validated=True)
