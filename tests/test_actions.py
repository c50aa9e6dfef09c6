"""Actions and drawn rows: their packets and stages, no bias where none is promised, and strict to read."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedrec.codecs.actions import ActionCodec
from fedrec.codecs.base import Codec
from fedrec.codecs.bits import pack_bits, packed_size, unpack_bits
from fedrec.codecs.float32 import Float32Codec, Float32Config
from fedrec.config.describe import load_member
from fedrec.core.errors import FederationError, PacketError
from fedrec.core.registry import codecs
from fedrec.core.rng import generator
from fedrec.core.tensors import Spec, TableSpec, Tensors, TensorSpec, zeros
from fedrec.stages.chain import Stages
from fedrec.stages.draws import Draws
from fedrec.stages.limits import Limits
from fedrec.testing.uplink import SPEC as UPLINKED
from fedrec.testing.uplink import USERS, given_by
from fedrec.uplinks.actions import ActionsConfig, ActionsUplink
from fedrec.uplinks.base import Room
from fedrec.uplinks.sampled import SampledConfig, SampledUplink, Sampling, chances
from fedrec.wire.updates import NodeUpdate

FLOAT32 = Float32Codec(Float32Config("float32"))
SPEC: Spec = {"table": TableSpec((70, 3)), "dense": TensorSpec((4, 2))}


def made(name: str) -> Codec:
    codec: Codec = codecs.get(name)(load_member("codec", name))
    return codec


# ---- packets ---------------------------------------------------------------------------------------------------------


def acted(rows: int, actions: int, *, alike: bool, seed: int = 0) -> Tensors:
    """A table of which so many rows move by so many actions."""
    rng = generator(seed, "acted")
    kinds = torch.randn(actions, 1, generator=rng) * torch.randn(3, generator=rng)
    if not alike:
        kinds = torch.randn(actions, 3, generator=rng)
    tensors = zeros(SPEC) | {"dense": torch.randn(4, 2, generator=rng)}
    places = torch.randperm(70, generator=rng)[:rows]
    tensors["table"][places] = kinds[torch.arange(rows) % actions]
    return tensors


@pytest.mark.parametrize("name", ["float32", "float16", "int8"])
@settings(max_examples=30, deadline=None)
@given(rows=st.integers(0, 70), kinds=st.integers(1, 15), alike=st.booleans(), seed=st.integers(0, 10**6))
def test_actions_come_back(name: str, rows: int, kinds: int, alike: bool, seed: int) -> None:
    """In the numbers of the codec; what was decoded is encoded as the same bytes again."""
    inner = made(name)
    codec, tensors = ActionCodec(inner, 16), acted(rows, kinds, alike=alike, seed=seed)
    came = codec.decode(memoryview(codec.encode(tensors, SPEC, None)), SPEC)
    again = codec.encode(came, SPEC, None)
    twice = codec.decode(memoryview(again), SPEC)
    for key, tensor in came.items():
        error = 0.0 if inner.exact else 1 / 127
        torch.testing.assert_close(tensor, tensors[key], rtol=1e-5, atol=1e-5 + error * float(tensors[key].abs().max()))
        torch.testing.assert_close(twice[key], tensor, rtol=1e-6, atol=1e-7)
    assert codec.least(SPEC) <= len(again) <= codec.size(SPEC)


def test_how_long_a_packet_is() -> None:
    """By hand: a head, the actions, and the shortest way to say which row takes which."""
    codec, dense = ActionCodec(made("int8"), 256), 4 + 8
    head = 4 + 1 + 1

    def length(rows: int, kinds: int, alike: bool) -> int:
        return len(codec.encode(acted(rows, kinds, alike=alike), SPEC, None)) - dense

    assert length(0, 1, False) == head
    assert length(4, 1, False) == head + (4 + 3) + 4  # four numbers of 7 bits
    assert length(20, 4, False) == head + (4 + 12) + 9 + 5  # a bit for each of 70 rows, two for each that moves
    assert length(70, 3, False) == head + (4 + 9) + 18  # two bits for every row of the table
    wide: Spec = {"table": TableSpec((70, 32))}
    row = torch.randn(32, generator=generator(1, "row"))
    table = torch.zeros(70, 32)
    table[:20] = torch.arange(1, 21)[:, None] % 4 * row + row
    assert len(codec.encode({"table": table}, wide, None)) == head + (4 + 32 + 4 * 4) + 9 + 5


def test_more_values_than_actions_are_not_sent() -> None:
    with pytest.raises(FederationError, match="take 16 values, at most 15"):
        ActionCodec(FLOAT32, 16).encode(acted(70, 16, alike=False), SPEC, None)


def refused(codec: ActionCodec, data: bytearray) -> bool:
    try:
        codec.decode(memoryview(data), SPEC)
    except PacketError:
        return True
    return False


def test_lies_are_refused() -> None:
    codec = ActionCodec(made("int8"), 16)
    good = bytearray(codec.encode(acted(20, 4, alike=False), SPEC, None))
    at = 4 + 8  # after the tensor that is no table
    assert codec.decode(memoryview(good), SPEC)
    lies = {
        "rows beyond the table": {at: 71},
        "no rows by some actions": {at: 0},
        "more rows than are named": {at: 21},
        "fewer": {at: 19},
        "more actions than rows": {at: 3},
        "more than there may be": {at + 4: 16},
        "no actions": {at + 4: 0},
        "other actions": {at + 4: 3},
        "neither yes nor no": {at + 5: 2},
        "multiples of a row": {at + 5: 1},
        "a row that is not": {at + 6 + 16 + 8: good[at + 6 + 16 + 8] ^ 1},
    }
    for name, change in lies.items():
        bad = bytearray(good)
        for place, value in change.items():
            bad[place] = value
        assert refused(codec, bad), name
    for cut in (good[:-1], good + b"\0"):
        assert refused(codec, cut)
    three = bytearray(codec.encode(acted(20, 3, alike=False), SPEC, None))
    three[-1] |= 0b11  # the last of two bits each is the fourth of three actions
    with pytest.raises(PacketError, match="other actions"):
        codec.decode(memoryview(three), SPEC)


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 10**9))
def test_damage_is_a_packet_error_or_finite_work(seed: int) -> None:
    rng = np.random.default_rng(seed)
    codec = ActionCodec(FLOAT32, 16)
    data = bytearray(codec.encode(acted(int(rng.integers(1, 70)), 7, alike=bool(seed % 2)), SPEC, None))
    for _ in range(int(rng.integers(1, 4))):
        data[int(rng.integers(len(data)))] = int(rng.integers(256))
    try:
        came = codec.decode(memoryview(data), SPEC)
    except PacketError:
        return
    assert came["table"].shape == (70, 3)


@given(numbers=st.lists(st.integers(0, 2**11 - 1), max_size=50))
def test_bits_come_back(numbers: list[int]) -> None:
    data = pack_bits(np.array(numbers, dtype=np.int64), 11)
    assert len(data) == packed_size(len(numbers), 11)
    assert unpack_bits(memoryview(data), len(numbers), 11).tolist() == numbers


# ---- the stage -------------------------------------------------------------------------------------------------------


def test_multiples_of_a_row_keep_their_direction_to_the_last_action() -> None:
    """Four actions of a user are four multiples of one row; most of the update is left."""
    uplink = ActionsUplink(ActionsConfig("actions", 4), FLOAT32)
    (stage,) = uplink.stages(None)
    before = given_by([0], alike=True)
    after = stage.on_devices(given_by([0], alike=True), Draws(1, fresh=False)).touched("table")
    kinds = torch.unique(after.changes, dim=0)
    assert len(kinds) <= 3
    assert np.linalg.matrix_rank(kinds.numpy(), tol=1e-4) == 1
    whole = before.touched("table").changes
    rest = whole.square().sum() - after.changes.square().sum()
    assert float(rest) < 0.2 * float(whole.square().sum())


def test_chances_are_in_proportion_and_add_up() -> None:
    lengths = torch.tensor([[8.0, 1.0, 1.0, 2.0, 0.0], [1.0, 1.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(
        chances(lengths, torch.tensor([2, 2])),
        torch.tensor([[1, 0.25, 0.25, 0.5, 0], [1, 1, 0, 0, 0]], dtype=torch.float64),
    )
    assert chances(lengths, torch.tensor([1, 0]))[1].tolist() == [0] * 5


def sampling(rows: int, room: Room | None = None) -> Sampling:
    return Sampling(rows, SampledUplink(SampledConfig("sampled", rows), FLOAT32).packet, room)


def test_drawn_rows_are_as_many_as_wanted_and_unbiased() -> None:
    whole = given_by([0]).touched("table")
    table = torch.zeros(90, 6).index_put((whole.rows,), whole.changes)
    mean, draws = torch.zeros(90, 6), 500
    for seed in range(draws):
        drawn = sampling(20).on_devices(given_by([0]), Draws(seed, fresh=False)).touched("table")
        assert len(drawn.rows) == 20
        mean[drawn.rows] += drawn.changes / draws
    chance = chances(whole.changes.norm(dim=1)[None], torch.tensor([20]))[0]
    error = (whole.changes.norm(dim=1) * ((1 - chance) / chance / draws).sqrt()).float()
    assert ((mean - table)[whole.rows].norm(dim=1) <= 5 * error + 1e-3).all()


def test_configurations_are_bounded() -> None:
    for member, wrong in (("actions", {"actions": 257}), ("actions", {"actions": 1}), ("sampled", {"rows": 0})):
        with pytest.raises(Exception, match=next(iter(wrong))):
            load_member("uplink", member, **wrong)
    assert dataclasses.is_dataclass(load_member("uplink", "actions"))


# ---- packets that have to fit ----------------------------------------------------------------------------------------


def all_of(rooms: NDArray[np.int64]) -> Room:
    return lambda keys: rooms


@pytest.mark.parametrize("alike", [True, False], ids=["alike", "rows"])
@pytest.mark.parametrize("name", ["float32", "int8"])
def test_a_packet_fits_into_its_room_with_as_many_actions_as_it_holds(name: str, alike: bool) -> None:
    """From more than enough to nearly nothing: never longer, and the more room, the less is lost."""
    codec, everybody = made(name), list(range(USERS))
    least = ActionsUplink(ActionsConfig("actions", 64), codec).packet.least(UPLINKED)
    whole = [given_by([user], alike=alike).touched("table").changes.square().sum() for user in everybody]
    lost = []
    for room in (10_000, 400, 200, 130, 100, 70, 45, least):
        rooms = np.full(USERS, room) - np.arange(USERS) % 2
        uplink = ActionsUplink(ActionsConfig("actions", 64), codec, all_of(rooms))
        (stage,) = uplink.stages(None)
        after = stage.on_devices(given_by(everybody, alike=alike), Draws(1, fresh=False))
        assert (uplink.sizes(after) <= np.maximum(rooms, least)).all()
        left = after.touched("table")
        kept = torch.zeros(USERS).index_add(0, left.owner, left.changes.square().sum(1))
        lost.append(float((torch.stack(whole) - kept).sum()))
    assert lost[0] < 0.3 * lost[-1]
    assert lost[-1] == pytest.approx(float(sum(whole)))


def test_who_has_little_room_sends_the_rows_that_move_farthest() -> None:
    before = given_by([0]).touched("table")
    uplink = ActionsUplink(ActionsConfig("actions", 64), FLOAT32, lambda keys: np.full(len(keys), 86))
    (stage,) = uplink.stages(None)
    left = stage.on_devices(given_by([0]), Draws(1, fresh=False)).touched("table")
    lengths = before.changes.norm(dim=1)
    assert 0 < len(left.rows) < len(before.rows)
    farthest = set(before.rows[lengths.argsort(descending=True)[: len(before.rows) // 2]].tolist())
    assert set(left.rows.tolist()) <= farthest


def test_drawn_rows_are_as_many_as_there_is_room_for() -> None:
    """From more than enough to none: never longer, and one row more would not have fitted."""
    everybody = list(range(USERS))
    for room in (10_000, 1_500, 900, 500, 300, 0):
        rooms = np.full(USERS, room) - 7 * np.arange(USERS)
        uplink = SampledUplink(SampledConfig("sampled", 20), FLOAT32, all_of(rooms))
        before = given_by(everybody).changed_rows("table")
        after = uplink.stages(None)[0].on_devices(given_by(everybody), Draws(1, fresh=False))
        left = {name: after.changed_rows(name) for name in after.tables}
        for user in everybody:
            rows = {name: int(of[user]) for name, of in left.items()}
            size = uplink.packet.size_of_rows(UPLINKED, rows)
            assert size <= max(rooms[user], uplink.packet.least(UPLINKED))
            if rows["table"] < min(20, before[user]):
                more = {name: count + 1 for name, count in rows.items()}
                assert uplink.packet.size_of_rows(UPLINKED, more) > rooms[user]


def test_a_user_without_a_limit_has_all_actions() -> None:
    rooms = np.array([10**9, 90])
    uplink = ActionsUplink(ActionsConfig("actions", 16), FLOAT32, lambda keys: rooms)
    (with_room,), (without,) = uplink.stages(None), ActionsUplink(ActionsConfig("actions", 16), FLOAT32).stages(None)
    limited, free = (stage.on_devices(given_by([0, 1]), Draws(1, fresh=False)) for stage in (with_room, without))
    first, second = (part.touched("table") for part in (limited, free))
    assert torch.equal(first.changes[first.owner == 0], second.changes[second.owner == 0])
    assert len(first.changes[first.owner == 1]) < len(second.changes[second.owner == 1])


def test_a_user_whose_rows_diverged_is_left_out_however_few_are_sent() -> None:
    """Also if the row that is no number is none of those that there would be room for."""
    given = given_by([0, 1])
    block = given.rows["table"][0]
    block.values[0, block.rows[0].argmax()] = torch.nan
    uplink = ActionsUplink(ActionsConfig("actions", 16), FLOAT32, lambda keys: np.full(len(keys), 62))
    update = NodeUpdate(zeros(UPLINKED))
    kept = Stages([], FLOAT32, Limits(50, 1e6), uplink=uplink).add(given, update, Draws(1, fresh=False))
    assert kept.tolist() == [False, True]
    assert update.dropped["non_finite"] == 1
