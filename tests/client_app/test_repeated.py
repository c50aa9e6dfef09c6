"""Both ways to find repeated values against a plain count."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from client_app.training.repeated import repeated


@given(
    values=st.lists(st.integers(0, 50), min_size=1), bound=st.sampled_from([51, 10**9]), least=st.sampled_from([1, 2])
)
def test_places_and_groups_are_those_of_a_count(values: list[int], bound: int, least: int) -> None:
    counts = Counter(values)
    found = repeated(np.array(values, dtype=np.int64), bound, least)
    assert found.places.tolist() == [place for place, value in enumerate(values) if counts[value] >= least]
    assert found.values.tolist() == sorted(value for value, count in counts.items() if count >= least)
    assert found.values[found.groups].tolist() == [values[place] for place in found.places]
