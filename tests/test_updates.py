"""A node's update is the weighted sum over its users, and nothing of a user who was left out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.core.tensors import Spec, Tensors, TensorSpec
from fedrec.wire.protocol import UPDATE_SCALARS
from fedrec.wire.updates import DROPPED, NodeUpdate, user_weights

SPEC: Spec = {"t": TensorSpec((2, 2)), "u": TensorSpec((3,))}


def delta(value: float) -> Tensors:
    return {name: torch.full(entry.shape, value) for name, entry in SPEC.items()}


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-4, 4, width=32), st.integers(1, 30), st.floats(0, 5)),
        max_size=8,
    )
)
def test_the_sum_by_hand(users: list[tuple[float, int, float]]) -> None:
    update = NodeUpdate.empty(SPEC)
    for value, examples, loss in users:
        assert update.add(delta(value), examples, loss, weight_cap=10, max_norm=100.0)
    weights = [min(examples, 10) for _, examples, _ in users]
    assert update.weight == sum(weights)
    assert (update.users, update.examples) == (len(users), sum(examples for _, examples, _ in users))
    assert update.loss == pytest.approx(sum(w * loss for w, (_, _, loss) in zip(weights, users, strict=True)))
    expected = sum(w * value for w, (value, _, _) in zip(weights, users, strict=True))
    for name, entry in SPEC.items():
        torch.testing.assert_close(update.total[name], torch.full(entry.shape, float(expected)), atol=1e-3, rtol=1e-5)
    assert not any(update.dropped.values())


def test_a_delta_is_not_changed_by_being_added() -> None:
    update, one = NodeUpdate.empty(SPEC), delta(1.0)
    update.add(one, 3, 0.0, 10, 100.0)
    update.add(delta(1.0), 3, 0.0, 10, 100.0)
    assert torch.equal(one["t"], torch.ones(2, 2))


BAD: dict[str, tuple[Tensors, float, str]] = {
    "NaN": ({**delta(1.0), "u": torch.tensor([0.0, float("nan"), 0.0])}, 0.5, "non_finite"),
    "infinity": (delta(float("inf")), 0.5, "non_finite"),
    "NaN loss": (delta(1.0), float("nan"), "non_finite"),
    "infinite loss": (delta(1.0), float("inf"), "non_finite"),
    "too large": (delta(2.0), 0.5, "too_large"),
    "too large for the square of a float32": (delta(1e30), 0.5, "too_large"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_user_is_counted_and_costs_the_others_nothing(case: str) -> None:
    bad, loss, reason = BAD[case]
    update = NodeUpdate.empty(SPEC)
    limit = 2.0 * math.sqrt(7) * 0.999
    assert update.add(delta(1.0), 4, 0.5, 10, limit)
    assert not update.add(bad, 4, loss, 10, limit)
    assert update.dropped == {**dict.fromkeys(DROPPED, 0), reason: 1}
    assert (update.weight, update.users, update.examples, update.loss) == (4.0, 1, 4, 2.0)
    assert torch.equal(update.total["t"], torch.full((2, 2), 4.0))


def test_a_delta_as_large_as_the_limit_is_taken() -> None:
    update = NodeUpdate.empty({"t": TensorSpec((2,))})
    assert update.add({"t": torch.tensor([3.0, 4.0])}, 1, 0.0, 1, max_norm=5.0)
    assert not update.add({"t": torch.tensor([3.0, 4.0001])}, 1, 0.0, 1, max_norm=5.0)


def test_scalars_travel_in_the_order_of_the_protocol() -> None:
    dropped = {name: 10 + place for place, name in enumerate(DROPPED)}
    update = NodeUpdate({}, weight=1.0, users=2, examples=3, loss=4.0, cold=5, dropped=dropped)
    named = dict(zip(UPDATE_SCALARS, update.scalars(), strict=True))
    counts = {name: float(value) for name, value in dropped.items()}
    assert named == {"weight": 1.0, "users": 2.0, "examples": 3.0, "loss": 4.0, "cold_users": 5.0, **counts}


def test_two_updates_share_nothing() -> None:
    first, second = NodeUpdate.empty(SPEC), NodeUpdate.empty(SPEC)
    first.add(delta(1.0), 1, 0.0, 1, 100.0)
    first.dropped["too_large"] += 1
    assert not second.total["t"].any()
    assert not any(second.dropped.values())


def test_weights_are_the_capped_number_of_examples() -> None:
    assert user_weights(np.array([0, 1, 5, 6, 10**9]), 5).tolist() == [0.0, 1.0, 5.0, 5.0, 5.0]
