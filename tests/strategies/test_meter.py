"""The meter against a count by hand."""

from __future__ import annotations

import numpy as np
import pytest

from federation.exchange import Ledger
from federation.meter import Meter
from federation.versions import FrozenBytes


def down(meter: Meter, phase: int, users: list[int], model: int, frozen: FrozenBytes) -> None:
    chosen = np.array(users)
    meter.downloaded(Ledger.TRAINING, phase, chosen, np.full(len(users), model))
    meter.froze(Ledger.TRAINING, phase, chosen, frozen)


def test_bytes_by_hand() -> None:
    meter = Meter(["warmup", "peft"])
    meter.grow(4, enrolment=10)
    nothing = {"up": 0, "down": 0, "one_time": 0, "merges": 0}
    meter.begin_round()
    down(meter, 0, [0, 1], 100, FrozenBytes(0))
    assert meter.moved == {**nothing, "down": 200}
    meter.uploaded(Ledger.TRAINING, 0, np.array([0]), np.array([110]))
    assert meter.moved["up"] == 110
    meter.begin_round()
    down(meter, 1, [1, 2], 20, FrozenBytes(500))
    assert meter.moved == {**nothing, "down": 40, "one_time": 1000}
    meter.begin_round()
    down(meter, 1, [2], 20, FrozenBytes(500))
    assert meter.moved == {**nothing, "down": 20}
    meter.uploaded(Ledger.TRAINING, 1, np.array([1, 2]), np.array([20, 40]))  # no two devices need send the same
    meter.downloaded(Ledger.EVALUATION, 1, np.arange(4), np.full(4, 20))
    meter.froze(Ledger.EVALUATION, 1, np.arange(4), FrozenBytes(500))
    meter.uploaded(Ledger.EVALUATION, 1, np.arange(4), np.full(4, 8))
    moved = meter.per_user()
    assert moved["by_phase"] == {"warmup": {"up": 27.5, "down": 50.0}, "peft": {"up": 15.0, "down": 15.0}}
    assert (moved["up"], moved["down"], moved["one_time"]) == (42.5, 65.0, 260.0)
    assert moved["total"] == 42.5 + 65.0 + 260.0
    assert moved["evaluation"] * 4 == 4 * (20 + 500) + 4 * 8
    meter.uploaded(Ledger.JOINING, 0, np.array([3]), np.array([6]))
    assert meter.per_user()["one_time"] == 260.0 + 1.5


def test_users_who_join_later_start_at_nothing_but_the_enrolment() -> None:
    meter = Meter(["full"])
    meter.grow(1, enrolment=10)
    down(meter, 0, [0], 100, FrozenBytes(7))
    meter.grow(3, enrolment=10)
    assert meter.per_user()["total"] == pytest.approx((30 + 107) / 3)
