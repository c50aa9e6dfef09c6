"""Both ways to find distinct values against the library's."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from client_app.distinct import distinct


@given(values=st.lists(st.integers(0, 50), min_size=1), bound=st.sampled_from([51, 10**9]))
def test_values_and_places_fit(values: list[int], bound: int) -> None:
    given_values = np.array(values, dtype=np.int64)
    found, place = distinct(given_values, bound)
    np.testing.assert_array_equal(np.sort(found), np.unique(given_values))
    np.testing.assert_array_equal(found[place], given_values)
