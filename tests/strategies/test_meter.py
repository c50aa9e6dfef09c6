"""The meter against a count by hand."""

from __future__ import annotations

import numpy as np
import pytest

from federation.exchange import Ledger
from federation.meter import Meter
from federation.versions import FrozenBytes


def down(meter: Meter, phase: int, users: list[int], model: int, frozen: FrozenBytes) -> None:
    chosen = np.array(users)
    meter.downloaded(Ledger.TRAINING, phase, len(users) * model)
    meter.froze(Ledger.TRAINING, phase, chosen, frozen)


def test_bytes_by_hand() -> None:
    meter = Meter(["warmup", "peft"])
    meter.grow(4, enrolment=10)
    nothing = {"up": 0, "down": 0, "one_time": 0, "merges": 0}
    meter.begin_round()
    down(meter, 0, [0, 1], 100, FrozenBytes(0))
    assert meter.moved == {**nothing, "down": 200}
    meter.uploaded(Ledger.TRAINING, 0, 110)
    assert meter.moved["up"] == 110
    meter.begin_round()
    down(meter, 1, [1, 2], 20, FrozenBytes(500))
    assert meter.moved == {**nothing, "down": 40, "one_time": 1000}
    meter.begin_round()
    down(meter, 1, [2], 20, FrozenBytes(500))
    assert meter.moved == {**nothing, "down": 20}
    meter.uploaded(Ledger.TRAINING, 1, 20 + 40)  # no two devices need send the same
    meter.downloaded(Ledger.EVALUATION, 1, 4 * 20)
    meter.froze(Ledger.EVALUATION, 1, np.arange(4), FrozenBytes(500))
    meter.uploaded(Ledger.EVALUATION, 1, 4 * 8)
    moved = meter.per_user()
    assert moved["by_phase"] == {"warmup": {"up": 27.5, "down": 50.0}, "peft": {"up": 15.0, "down": 15.0}}
    assert (moved["up"], moved["down"], moved["one_time"]) == (42.5, 65.0, 260.0)
    assert moved["total"] == 42.5 + 65.0 + 260.0
    assert moved["evaluation"] * 4 == 4 * (20 + 500) + 4 * 8
    meter.uploaded(Ledger.JOINING, 0, 6)
    assert meter.per_user()["one_time"] == 260.0 + 1.5


def test_users_who_join_later_start_at_nothing_but_the_enrolment() -> None:
    meter = Meter(["full"])
    meter.grow(1, enrolment=10)
    down(meter, 0, [0], 100, FrozenBytes(7))
    meter.grow(3, enrolment=10)
    assert meter.per_user()["total"] == pytest.approx((30 + 107) / 3)
    for _ in range(2):
        meter.froze(Ledger.EVALUATION, 0, np.arange(3), FrozenBytes(7))
    assert meter.evaluation == pytest.approx(7)
    assert [meter.state()[name].shape for name in ("trained_in", "evaluated_in")] == [(1, 3), (1, 3)]


def test_what_checkpoints_kept_for_each_user_is_counted_on_as_sums() -> None:
    meter = Meter(["warmup", "peft"])
    meter.grow(2, enrolment=10)
    state = meter.state() | {
        "up": np.array([[1, 2], [3, 4]]),
        "down": np.array([[5, 5], [6, 6]]),
        "one_time": np.array([10, 17]),
        "merges": np.array([0, 8]),
    }
    old, new = Meter(["warmup", "peft"]), Meter(["warmup", "peft"])
    old.restore(state)
    new.restore(old.state())
    for restored in (old, new):
        moved = restored.per_user()
        assert moved["by_phase"] == {"warmup": {"up": 1.5, "down": 5.0}, "peft": {"up": 3.5, "down": 6.0}}
        assert (moved["one_time"], moved["merges"]) == (13.5, 4.0)
