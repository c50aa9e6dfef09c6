"""The meter against a count by hand."""

from __future__ import annotations

import numpy as np
import pytest

from federation.meter import Meter
from federation.versions import FrozenBytes


def test_bytes_by_hand() -> None:
    meter = Meter(["warmup", "peft"])
    meter.grow(4, enrolment=10)
    nothing = {"up": 0, "down": 0, "one_time": 0, "merges": 0}
    assert meter.downloaded(0, np.array([0, 1]), 100, FrozenBytes(0)) == {**nothing, "down": 200}
    assert meter.uploaded(0, np.array([0]), 110) == 110
    found = meter.downloaded(1, np.array([1, 2]), 20, FrozenBytes(500))
    assert found == {**nothing, "down": 40, "one_time": 1000}
    assert meter.downloaded(1, np.array([2]), 20, FrozenBytes(500)) == {**nothing, "down": 20}
    meter.uploaded(1, np.array([1, 2]), 30)
    meter.evaluated(1, np.arange(4), training=0, model=20, frozen=FrozenBytes(500))
    meter.ranked(4, metrics=8)
    meter.evaluated(1, np.arange(4), training=3, model=20, frozen=FrozenBytes(500))
    meter.ranked(2, metrics=8)
    moved = meter.per_user()
    assert moved["by_phase"] == {"warmup": {"up": 27.5, "down": 50.0}, "peft": {"up": 15.0, "down": 15.0}}
    assert (moved["up"], moved["down"], moved["one_time"]) == (42.5, 65.0, 260.0)
    assert moved["total"] == 42.5 + 65.0 + 260.0
    # Three of the four downloaded the model of the second ranking to train it; two nodes' metrics were of no use.
    assert moved["evaluation"] * 4 == (4 * (20 + 500) + 4 * 8) + (1 * 20 + 2 * 8)


def test_users_who_join_later_start_at_nothing_but_the_enrolment() -> None:
    meter = Meter(["full"])
    meter.grow(1, enrolment=10)
    meter.downloaded(0, np.array([0]), 100, FrozenBytes(7))
    meter.grow(3, enrolment=10)
    assert meter.per_user()["total"] == pytest.approx((30 + 107) / 3)
