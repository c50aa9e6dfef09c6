"""Simulated time: it follows from the bytes that are charged and the work that is done, user by user."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from client_app.answers.app import app as honest
from client_app.answers.handling import down_of
from exchanges.records import CLOCK, DOWN, ENROLL, KEYS, MODEL, SLOTS, UPDATE, Content, unpack
from federation.cohorts.fixed import round_half_up
from fedrec.core.errors import FederationError, PacketError
from fedrec.core.rng import counter_normal, derive
from fedrec.wire.clock import Clock
from fedrec.wire.protocol import UPDATE_SCALARS, Setup
from peft_embeddings.model import models_of

Federate = Callable[..., Any]

MOBILE = "network=mobile"
FAST = ["optim=fast", "optim.negatives=5"]
SPARSE = ["strategy=full", "uplink=sparse", "dataset.n_items=300", *FAST]
ACTIONS = ["strategy=full", "uplink=actions", "network.reply_seconds=0.001", *FAST]
FEW = "strategy.rounds=3"
LATE = "network.deadline=0.112"
USERS = 60
CLOCKS = ("simulated_round", "simulated_seconds")


def times(outcome: Any) -> list[float]:
    return [line["simulated_round"] for line in outcome.metrics]


def without(lines: list[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in ("seconds", *names)} for line in lines]


@pytest.mark.parametrize("overrides", [["strategy.merge_every=1"], SPARSE], ids=" ".join)
def test_a_clock_changes_no_result_to_the_bit(federate: Federate, overrides: list[str]) -> None:
    plain, timed = federate(*overrides), federate(*overrides, MOBILE)
    there, here = plain.checkpoint(), timed.checkpoint()
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], tensor) for name, tensor in there.items())
    assert without(timed.metrics, *CLOCKS) == without(plain.metrics)
    assert timed.summary["test"] == plain.summary["test"]
    assert timed.summary["bytes_per_user"] == plain.summary["bytes_per_user"]
    assert not {*CLOCKS} & {*plain.metrics[0], *plain.summary}
    ends = np.cumsum(times(timed)).tolist()
    assert [line["simulated_seconds"] for line in timed.metrics] == pytest.approx(ends)
    assert timed.summary["simulated_seconds"] == timed.metrics[-1]["simulated_seconds"]
    # What a device is said to download for a round is what it is charged for: the model, and what is sent once.
    for line in timed.metrics:
        sent = [unpack(message.content) for message in timed.grid.sent]
        down = [
            each.arrays[DOWN].sum() for each in sent if SLOTS in each.arrays and each.fields["round"] == line["round"]
        ]
        assert sum(down) == sum(line["bytes"][way] for way in ("down", "one_time", "merges"))


@pytest.mark.parametrize(
    "overrides",
    [SPARSE, [*ACTIONS, "network.deadline=0.104"], ["grouping=key", "grouping.groups=3", LATE]],
    ids=" ".join,
)
def test_the_clock_does_not_depend_on_the_layout(federate: Federate, overrides: list[str]) -> None:
    one = federate(*overrides, FEW, MOBILE, nodes=1)
    assert min(times(one)) > 0.1
    late = sum(line["dropped_users"].get("late", 0) for line in one.metrics)
    assert (late > 0) == (overrides is not SPARSE)
    for nodes in (2, 7, *([USERS] if overrides is SPARSE else [])):
        other = federate(*overrides, FEW, MOBILE, nodes=nodes)
        other.must_equal(one)
        assert times(other) == pytest.approx(times(one), rel=1e-9)
        assert [line["dropped_users"] for line in other.metrics] == [line["dropped_users"] for line in one.metrics]


def test_a_round_by_hand(federate: Federate) -> None:
    """With a node for each user every packet is a device's own, and its length is seen from outside."""
    outcome = federate(
        *SPARSE, MOBILE, "optim.private_steps=2", "network.speed=100.0", "strategy.rounds=2", nodes=USERS
    )
    setup = Setup.from_json((outcome.folder / "setup.json").read_text())
    form = setup.update_format(models_of(setup)[0].trainable, 1)
    replies = {reply.metadata.reply_to_message_id: unpack(reply.content) for reply in outcome.grid.received}
    keys: dict[int, Any] = {}
    slowest = dict.fromkeys([1, 2], 0.0)
    for message in outcome.grid.sent:
        node, content = message.metadata.dst_node_id, unpack(message.content)
        reply = replies[message.metadata.message_id]
        if message.metadata.message_type == ENROLL:
            keys[node] = reply.arrays[KEYS].astype(np.uint64)
        elif SLOTS in content.arrays:
            (z,) = counter_normal(derive(setup.seed, "network", "bandwidth"), keys[node])
            (slow,) = counter_normal(derive(setup.seed, "network", "speed"), keys[node])
            down, up = len(content.packet(MODEL)), len(reply.packet(UPDATE))
            work = 3 * form.decode(reply.packet(UPDATE)).scalars[UPDATE_SCALARS.index("examples")]
            moved = 8e-6 * (down / (20 * np.exp(z)) + up / (5 * np.exp(z)))
            seconds = 0.1 + moved + work / (100 * np.exp(0.5 * slow))
            assert Clock.read(reply.packet(CLOCK), 1) == (pytest.approx(seconds, rel=1e-9), 0)
            slowest[content.fields["round"]] = max(slowest[content.fields["round"]], seconds)
    assert times(outcome) == pytest.approx([slowest[1], slowest[2]], rel=1e-9)


def test_who_misses_the_deadline_is_counted_and_changes_nothing(federate: Federate) -> None:
    """Both engines leave out the same users, such a round ends at the deadline, and all late end the run."""
    fast, slow = (federate(*SPARSE, FEW, MOBILE, LATE, f"engine={engine}") for engine in ("cohort", "oracle"))
    slow.must_equal(fast)
    assert times(slow) == times(fast)
    free = federate(*SPARSE, FEW, MOBILE)
    for line, patient in zip(fast.metrics, free.metrics, strict=True):
        late = line["dropped_users"]["late"]
        assert late > 0
        assert line["simulated_round"] == 0.112 < patient["simulated_round"]
        assert line["users"] + late == line["cohort"] == patient["users"]
        assert line["bytes"]["down"] == patient["bytes"]["down"]
        assert line["bytes"]["up"] < patient["bytes"]["up"], "of who is late no list is counted"
    assert any("late: they missed the simulated network.deadline" in text for text in fast.summary["warnings"])
    with pytest.raises(FederationError, match=r"late \(they missed the simulated network\.deadline"):
        federate(*SPARSE, MOBILE, "network.deadline=0.1")


def test_who_is_away_is_not_chosen(federate: Federate) -> None:
    """Whatever the layout, and after a run was resumed; the share of those who are there is asked."""
    away = [*SPARSE, FEW, MOBILE, "network.availability=0.5", "federation.fraction=0.5"]
    one = federate(*away, nodes=1)
    setup = Setup.from_json((one.folder / "setup.json").read_text())
    told = (unpack(reply.content).arrays for reply in one.grid.received)
    (keys,) = (arrays[KEYS].astype(np.uint64) for arrays in told if KEYS in arrays)
    for line in one.metrics:
        there = setup.network_of_run.there(keys, line["round"])
        assert line["cohort"] == round_half_up(0.5 * there.sum()) < 0.5 * USERS
    for nodes in (7, USERS):
        other = federate(*away, nodes=nodes)
        other.must_equal(one)
        assert times(other) == pytest.approx(times(one), rel=1e-9)


@pytest.mark.parametrize("clock", [b"", b"0" * 15, Clock(float("nan"), 0).packet(), Clock(-1.0, 0).packet(),
                                   Clock(1.0, -1).packet(), Clock(1.0, 4).packet()], ids=repr)  # fmt: skip
def test_a_clock_that_cannot_be_is_refused(clock: bytes) -> None:
    assert Clock.read(Clock(1.5, 3).packet(), 3) == (1.5, 3)
    with pytest.raises(PacketError):
        Clock.read(clock, 3)


def test_an_update_without_a_clock_does_not_count(federate: Federate) -> None:
    def client(message: Any, context: Any) -> Any:
        reply = honest(message, context)
        for record in reply.content.array_records.values():
            record.pop(CLOCK, None)
        return reply

    with pytest.raises(FederationError, match="malformed"):
        federate(MOBILE, FEW, "federation.repeats=0", client=client)


@pytest.mark.parametrize("down", [np.zeros(1, np.int64), np.array([1, -1]), np.ones(2), np.array([1, 2**50])], ids=str)
def test_downloads_that_cannot_be_are_malformed(down: Any) -> None:
    assert down_of(Content({DOWN: np.array([3, 4])}, {}), 2).tolist() == [3, 4]
    with pytest.raises(PacketError, match="came as the downloads of 2 users"):
        down_of(Content({DOWN: down}, {}), 2)
