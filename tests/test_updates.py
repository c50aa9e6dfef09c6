"""A node's update is the weighted sum over its users, and nothing of a user who was left out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.core.tensors import Spec, Tensors, TensorSpec, zeros
from fedrec.stages.chain import Stages, plain_stages
from fedrec.stages.contributions import Contributions
from fedrec.stages.draws import Draws
from fedrec.stages.limits import Limits
from fedrec.wire.protocol import UPDATE_SCALARS
from fedrec.wire.updates import DROPPED, NodeUpdate

SPEC: Spec = {"t": TensorSpec((2, 2)), "u": TensorSpec((3,))}


def delta(value: float) -> Tensors:
    return {name: torch.full(entry.shape, value) for name, entry in SPEC.items()}


def add(stages: Stages, update: NodeUpdate, one: Tensors, examples: int, loss: float, spec: Spec = SPEC) -> bool:
    """One user's update; whether it was taken."""
    whole = {name: tensor[None] for name, tensor in one.items()}
    lengths, losses = np.array([examples]), torch.tensor([loss], dtype=torch.float64)
    user = Contributions.of(spec, np.array([9], dtype=np.uint64), {}, whole, lengths, losses)
    return bool(stages.add(user, update, Draws(0, fresh=False)))


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-4, 4, width=32), st.integers(1, 30), st.floats(0, 5)),
        max_size=8,
    )
)
def test_the_sum_by_hand(users: list[tuple[float, int, float]]) -> None:
    stages = plain_stages(Limits(10, 100.0))
    update = stages.empty(zeros(SPEC), users=9)
    for value, examples, loss in users:
        assert add(stages, update, delta(value), examples, loss)
    weights = [min(examples, 10) for _, examples, _ in users]
    assert update.weight == sum(weights)
    assert (update.users, update.examples) == (len(users), sum(examples for _, examples, _ in users))
    assert update.loss == pytest.approx(sum(w * loss for w, (_, _, loss) in zip(weights, users, strict=True)))
    expected = sum(w * value for w, (value, _, _) in zip(weights, users, strict=True))
    for name, entry in SPEC.items():
        torch.testing.assert_close(update.total[name], torch.full(entry.shape, float(expected)), atol=1e-3, rtol=1e-5)
    assert not any(update.dropped.values())


def test_a_delta_is_not_changed_by_being_added() -> None:
    stages = plain_stages(Limits(10, 100.0))
    update, one = stages.empty(zeros(SPEC), users=9), delta(1.0)
    add(stages, update, one, 3, 0.0)
    add(stages, update, delta(1.0), 3, 0.0)
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
    stages = plain_stages(Limits(10, 2.0 * math.sqrt(7) * 0.999))
    update = stages.empty(zeros(SPEC), users=9)
    assert add(stages, update, delta(1.0), 4, 0.5)
    assert not add(stages, update, bad, 4, loss)
    assert update.dropped == {**dict.fromkeys(DROPPED, 0), reason: 1}
    assert (update.weight, update.users, update.examples, update.loss) == (4.0, 1, 4, 2.0)
    assert torch.equal(update.total["t"], torch.full((2, 2), 4.0))


def test_a_delta_as_large_as_the_limit_is_taken() -> None:
    spec: Spec = {"t": TensorSpec((2,))}
    stages = plain_stages(Limits(1, 5.0))
    update = stages.empty(zeros(spec), users=9)
    assert add(stages, update, {"t": torch.tensor([3.0, 4.0])}, 1, 0.0, spec)
    assert not add(stages, update, {"t": torch.tensor([3.0, 4.0001])}, 1, 0.0, spec)


def test_scalars_travel_in_the_order_of_the_protocol() -> None:
    dropped = {name: 10 + place for place, name in enumerate(DROPPED)}
    update = NodeUpdate({}, weight=1.0, users=2, examples=3, loss=4.0, cold=5, dropped=dropped)
    named = dict(zip(UPDATE_SCALARS, update.scalars(), strict=True))
    counts = {name: float(value) for name, value in dropped.items()}
    assert named == {"weight": 1.0, "users": 2.0, "examples": 3.0, "loss": 4.0, "cold_users": 5.0, **counts}


def test_two_updates_share_nothing() -> None:
    stages = plain_stages(Limits(1, 100.0))
    first, second = stages.empty(zeros(SPEC), users=9), stages.empty(zeros(SPEC), users=9)
    add(stages, first, delta(1.0), 1, 0.0)
    first.dropped["too_large"] += 1
    assert not second.total["t"].any()
    assert not any(second.dropped.values())


def test_weights_are_the_capped_number_of_examples() -> None:
    stages, given = plain_stages(Limits(5, 1.0)), np.array([0, 1, 5, 6, 10**9])
    users = Contributions.of({}, np.arange(5, dtype=np.uint64), {}, {}, given, torch.zeros(5))
    assert stages.on_devices(users, Draws(0, fresh=False)).weight.tolist() == [0.0, 1.0, 5.0, 5.0, 5.0]
