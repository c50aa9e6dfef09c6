"""The average is the average, whatever the order; a reply that is not admissible changes nothing."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.aggregation import LARGEST_LOSS, UpdateFold, check_sums, summary
from fedrec.core.errors import PacketError
from fedrec.core.tensors import Tensors, TensorSpec
from fedrec.wire.packet import Kind, Packet
from fedrec.wire.protocol import UPDATE_SCALARS

SPEC = {"t": TensorSpec((2, 3))}


def update(value: float | Tensors, weight: float = 1.0, users: float = 1.0, **others: float) -> Packet:
    tensors = value if isinstance(value, dict) else {"t": torch.full((2, 3), value * weight)}
    scalars = dict.fromkeys(UPDATE_SCALARS, 0.0) | {"weight": weight, "users": users, "examples": users} | others
    return Packet(Kind.UPDATE, 0, 1, tuple(scalars.values()), tensors)


def fold(cohort: int = 10, cap: int = 5, norm: float = 100.0) -> UpdateFold:
    return UpdateFold(SPEC, cohort, cap, norm)


def test_three_clients_uploading_1_2_3_average_to_2() -> None:
    folded = fold()
    for value in (1.0, 2.0, 3.0):
        folded.add(update(value), asked=1)
    mean = folded.sum().mean()
    assert mean is not None
    torch.testing.assert_close(mean["t"], torch.full((2, 3), 2.0))


def test_weights_count() -> None:
    folded = fold()
    folded.add(update(1.0, weight=1.0), asked=1)
    folded.add(update(4.0, weight=2.0), asked=1)
    mean = folded.sum().mean()
    assert mean is not None
    torch.testing.assert_close(mean["t"], torch.full((2, 3), 3.0))


@settings(max_examples=50)
@given(
    values=st.lists(st.tuples(st.floats(-10, 10), st.integers(1, 5)), min_size=1, max_size=10),
    order=st.randoms(use_true_random=False),
)
def test_the_order_of_arrival_changes_no_bit(values: list[tuple[float, int]], order: object) -> None:
    packets = [update(value, weight=float(weight)) for value, weight in values]
    first, second = fold(), fold()
    for packet in packets:
        first.add(packet, asked=1)
    order.shuffle(packets)  # type: ignore[attr-defined]
    for packet in packets:
        second.add(packet, asked=1)
    a, b = first.sum().mean(), second.sum().mean()
    assert a is not None
    assert b is not None
    assert torch.equal(a["t"], b["t"])
    exact = sum(value * weight for value, weight in values) / sum(weight for _, weight in values)
    torch.testing.assert_close(a["t"], torch.full((2, 3), exact), atol=1e-5, rtol=1e-5)


def test_the_largest_admissible_cohort_does_not_overflow() -> None:
    folded = UpdateFold(SPEC, cohort=10_000, weight_cap=1000, max_update_norm=1000.0)
    big = 1000.0 / math.sqrt(6) * 0.999
    for _ in range(10):
        folded.add(update({"t": torch.full((2, 3), big * 1000 * 1000)}, weight=1e6, users=1000.0), asked=1000)
    mean = folded.sum().mean()
    assert mean is not None
    torch.testing.assert_close(mean["t"], torch.full((2, 3), big), rtol=1e-5, atol=1e-5)


BAD = {
    "non_finite": update({"t": torch.tensor([[1.0, float("nan"), 0], [0, 0, 0]])}),
    "non_finite ": update({"t": torch.full((2, 3), float("inf"))}),
    "non_finite  ": update(0.0, loss=float("nan")),
    "wrong_weight": update(1.0, weight=1e12),
    "wrong_weight ": update(1.0, weight=-1.0),
    "wrong_users": update(1.0, users=50.0),
    "wrong_users ": update(1.0, users=0.5),
    "too_large": update(1e6),
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_reply_is_named_and_changes_nothing(reason: str) -> None:
    folded = fold()
    folded.add(update(1.0), asked=1)
    with pytest.raises(PacketError) as caught:
        folded.add(BAD[reason], asked=1)
    assert caught.value.reason == reason.strip()
    folded.add(update(3.0), asked=1)
    mean = folded.sum().mean()
    assert mean is not None
    torch.testing.assert_close(mean["t"], torch.full((2, 3), 2.0))
    assert folded.summary()["users"] == 2


def test_more_examples_than_a_catalogue_has_are_refused() -> None:
    fold().add(update(1.0, users=2.0, examples=2.0 * (2**31 - 1)), asked=2)
    for examples in (2.0 * (2**31 - 1) + 1, 1e300):
        with pytest.raises(PacketError) as caught:
            fold().add(update(1.0, users=2.0, examples=examples), asked=2)
        assert caught.value.reason == "wrong_examples"


def test_a_part_of_a_reply_counts_as_much_less_in_the_sum_its_weight_and_its_loss() -> None:
    """Updates of 1 and 5, losses of 2 and 4: a quarter of the second weighs as much as the first."""
    folded = fold()
    folded.add(update(1.0, weight=1.0, loss=2.0), asked=1)
    assert folded.add(update(5.0, weight=4.0, loss=16.0), asked=1, part=0.25)
    mean = folded.sum().mean()
    assert mean is not None
    torch.testing.assert_close(mean["t"], torch.full((2, 3), 3.0))
    assert (folded.scalar("weight"), folded.weight_of_losses, folded.loss) == (2.0, 2.0, 3.0)
    assert folded.summary()["users"] == 2, "users are counted as they are"


def test_a_loss_at_the_edge_of_what_is_believed() -> None:
    """The largest one of a weight of 2, and above it; the losses of others stay their mean."""
    folded = fold()
    assert folded.add(update(1.0, weight=2.0, loss=2 * LARGEST_LOSS), asked=1)
    assert not folded.add(update(1.0, weight=2.0, loss=2.001 * LARGEST_LOSS), asked=1)
    assert not folded.add(update(1.0, weight=2.0, loss=-2.001 * LARGEST_LOSS), asked=1)
    assert folded.add(update(1.0, weight=2.0, loss=4.0), asked=1)
    assert (folded.weight_of_losses, folded.loss) == (4.0, (LARGEST_LOSS + 2) / 2)
    assert summary([folded, folded])["loss"] == folded.summary()["loss"] == folded.loss
    assert folded.scalar("weight") == 8.0


def test_a_fold_on_a_grid_of_its_own_begins_with_nothing() -> None:
    folded = UpdateFold(SPEC, 10, 5, 100.0, units_per_one=1.0)
    assert not folded.sum().units["t"].any()
    folded.add(update({"t": torch.full((2, 3), 3, dtype=torch.int64)}), asked=1)
    assert torch.equal(folded.sum().units["t"], torch.full((2, 3), 3))


def test_nobody_contributed() -> None:
    folded = fold()
    assert folded.sum().mean() is None
    folded.add(update(0.0, weight=0.0, users=0.0), asked=3)
    assert folded.sum().mean() is None
    assert folded.summary()["loss"] is None


@pytest.mark.parametrize(
    ("sums", "reason"),
    [
        ((2.0, 0.0, 0.0, 3.0), "wrong_metrics"),
        ((2.5, 0.0, 0.0, 1.0), "wrong_metrics"),
        ((1.0, 0.0, 0.0, -0.1), "wrong_metrics"),
        ((6.0, 0.0, 0.0, 1.0), "wrong_metrics"),
        ((3.0, 0.0, 3.0, 1.0), "wrong_metrics"),
        ((3.0, 4.0, 0.0, 1.0), "wrong_metrics"),
        ((1.0, 0.0, 0.0, 1.001), "wrong_metrics"),
        ((0.0, 0.0, 0.0, 0.001), "wrong_metrics"),
        ((1.0, 0.0, 0.0, float("nan")), "non_finite"),
    ],
)
def test_impossible_metrics_are_refused(sums: tuple[float, ...], reason: str) -> None:
    with pytest.raises(PacketError) as caught:
        check_sums(sums, residents=5)
    assert caught.value.reason == reason
    for possible in ((2.0, 1.0, 3.0, 1.5), (2.0, 2.0, 0.0, 2.0), (5.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0)):
        assert check_sums(possible, residents=5) == possible
