"""One user per SuperNode through Flower's runtime, a thousand of them."""

from __future__ import annotations

from typing import Any

import pytest

USERS = 1_000


@pytest.mark.runtime
def test_a_thousand_supernodes_of_one_user_each(place: Any) -> None:
    given = [f"dataset.n_users={USERS}", "strategy.rounds=2", "federation.fraction=0.05", "optim.solve_epochs=1"]
    status, end, err = place.finished(place.start(*given, f"simulation.nodes={USERS}"))
    assert status == 0, err
    assert place.remains() == []
    status, alone, err = place.finished(place.start(*given, "run_id=alone", command="train"))
    assert status == 0, err
    assert end["test"]["users"] > 0.9 * USERS
    assert end["test"] == pytest.approx(alone["test"], abs=1e-6)
    assert end["bytes_per_user"] == alone["bytes_per_user"]
    assert [record["dropped_replies"] for record in place.metrics()] == [{}, {}]
    assert [record["cohort"] for record in place.metrics()] == [50, 50]
