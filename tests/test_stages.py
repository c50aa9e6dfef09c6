"""Stages, their order, exact sums, and noise that is drawn once only."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest
from torch import Tensor

from federation.aggregation import UpdateFold
from fedrec.codecs.base import Codec
from fedrec.config.describe import load_member
from fedrec.core.errors import ConfigError, FederationError, PacketError
from fedrec.core.registry import codecs
from fedrec.core.rng import generator
from fedrec.core.tensors import Spec, TableSpec, Tensors, TensorSpec, zeros
from fedrec.stages.addition import MOST_USERS
from fedrec.stages.base import Release, Round, Stage
from fedrec.stages.chain import Stages
from fedrec.stages.contributions import Contributions, Rows, Touched
from fedrec.stages.draws import KEY_BYTES, Draws
from fedrec.stages.limits import Limits
from fedrec.stages.noise import normal
from fedrec.stages.sums import Sum
from fedrec.uplinks.sparse import SparseConfig, SparseUplink
from fedrec.wire.packet import Kind, PacketFormat
from fedrec.wire.protocol import UPDATE_SCALARS

SPEC: Spec = {"table": TableSpec((40, 6)), "dense": TensorSpec((5, 3))}
DRAWS = Draws(3, fresh=False)


def codec_of(name: str) -> Codec:
    """A codec by its name, `<name>/row` for one with a scale for every row."""
    name, _, scale = name.partition("/")
    made: Codec = codecs.get(name)(load_member("codec", name, **({"scale": scale} if scale else {})))
    return made


CODECS = ["float32", "float16", "float16/row", "int8", "int8/row"]


def users(number: int, seed: int = 0) -> Contributions:
    """Sparse contributions of users with other keys, lengths and rows; a row stands in several places."""
    rng = generator(seed, "users")
    blocks, owner = [], torch.arange(number)
    for count in (4, 3):
        rows = torch.stack([torch.randperm(20, generator=rng)[:count] for _ in range(number)])
        rows += 20 * (count == 3)  # so that no row of a user is in both
        blocks.append(Rows(owner, rows, torch.randn(number, count, 6, generator=rng)))
    whole = {"dense": torch.randn(number, 5, 3, generator=rng)}
    lengths = torch.randint(1, 300, (number,), generator=rng).numpy()
    keys = np.arange(1000 * seed, 1000 * seed + number, dtype=np.uint64)
    return Contributions.of(SPEC, keys, {"table": blocks}, whole, lengths, torch.rand(number, generator=rng))


def part(given: Contributions, which: list[int]) -> Contributions:
    """Some of the users, as a node would have them on which they alone live."""
    number = {user: place for place, user in enumerate(which)}
    rows = {}
    for name, blocks in given.rows.items():
        rows[name] = []
        for block in blocks:
            mine = [place for place, user in enumerate(block.owner.tolist()) if user in number]
            owner = torch.tensor([number[int(block.owner[place])] for place in mine], dtype=torch.int64)
            rows[name].append(Rows(owner, block.rows[mine], block.values[mine].clone()))
    whole = {name: tensor[which].clone() for name, tensor in given.whole.items()}
    return Contributions.of(SPEC, given.keys[which], rows, whole, given.examples.numpy()[which], given.loss[which])


class Clip(Stage):
    """A clip, and perhaps noise on the sum."""

    reads = "norms"

    def __init__(self, bound: float, deviation: float = 0.0) -> None:
        self.bound, self.deviation = bound, deviation

    @property
    def max_norm(self) -> float:
        return self.bound

    @property
    def noises_sum(self) -> bool:
        return self.deviation > 0

    def on_devices(self, given: Contributions, draws: Draws) -> Contributions:
        return given.clipped(self.bound)

    def on_sum(self, total: Sum, about: Round) -> Sum:
        return total.with_noise(self.deviation, about.draws) if self.noises_sum else total

    def event(self, round: int) -> Release | None:
        return Release("gaussian", self.deviation / self.bound)


class Dense(Stage):
    """Changes every number, and says which representation it was given."""

    reads = "dense"

    def __init__(self) -> None:
        self.seen: list[tuple[int, list[str]]] = []

    def on_devices(self, given: Contributions, draws: Draws) -> Contributions:
        self.seen.append((len(given), sorted(given.whole)))
        return given.changed(whole={name: 2 * tensor + 0.01 for name, tensor in given.whole.items()})


def sums(stages: Stages, given: Contributions) -> Tensors:
    update = stages.empty(zeros(SPEC), len(given))
    stages.add(copy.deepcopy(given), update, DRAWS)
    return update.total


def arrived(stages: Stages, nodes: list[Contributions]) -> Sum:
    """What the server adds up of the packets of several nodes."""
    everybody = sum(map(len, nodes))
    fold = UpdateFold(SPEC, everybody, stages.limits.weight_cap, stages.max_norm, stages.units_per_one(everybody))
    for node in nodes:
        update = stages.empty(zeros(SPEC), len(node))
        stages.add(copy.deepcopy(node), update, DRAWS)
        spec, codec = stages.sum_format(SPEC, len(node))
        form = PacketFormat(Kind.UPDATE, spec, codec, len(UPDATE_SCALARS))
        fold.add(form.decode(form.encode(0, 1, update.total, update.scalars(), seed=None)), asked=len(node))
    return fold.sum()


# ---- the path --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    "members", [[], [Clip(0.3)], [Dense()], [Dense(), Clip(0.3)]], ids=["none", "clip", "dense", "both"]
)
def test_sparse_contributions_come_to_what_whole_ones_do(members: list[Stage], codec: str) -> None:
    stages, given = Stages(members, codec_of(codec), Limits(50, 1e6)), users(7)
    slow = stages.empty(zeros(SPEC), 7)
    for one in copy.deepcopy(given).one_by_one():
        stages.add(one, slow, DRAWS)
    fast = sums(stages, given)
    for name, tensor in slow.total.items():
        torch.testing.assert_close(fast[name], tensor, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("codec", CODECS)
def test_a_clip_bounds_what_travels_whatever_the_codec(codec: str) -> None:
    stages, given = Stages([Clip(1.0)], codec_of(codec), Limits(1, 1e6)), users(200)
    norms = []
    for user in range(200):
        spec, chosen = stages.sum_format(SPEC, 1)
        form = PacketFormat(Kind.UPDATE, spec, chosen, 0)
        packet = form.encode(0, 1, sums(stages, part(given, [user])), [], seed=None)
        sent = form.decode(packet).tensors
        norms.append(float(torch.cat([tensor.double().flatten() for tensor in sent.values()]).norm()))
    assert max(norms) <= 1.0
    assert min(norms) > 0.999


def test_without_the_order_of_the_stages_the_bound_would_not_hold() -> None:
    """A clip before the rounding: why stages that read norms come after the codec."""
    stages = Stages([], codec_of("int8"), Limits(1, 1e6))
    given = users(200)
    factor = given.with_norms().clipped(1.0).factor.float()
    blocks = [block._replace(values=block.values * factor[block.owner, None, None]) for block in given.rows["table"]]
    whole = {name: tensor * factor[:, None, None] for name, tensor in given.whole.items()}
    before = given.changed(rows={"table": blocks}, whole=whole)
    assert float(before.with_norms().norms.max()) <= 1.0
    assert float(stages.on_devices(before, DRAWS).with_norms().norms.max()) > 1.0


def test_a_dense_stage_is_given_one_user_after_the_other() -> None:
    stage = Dense()
    sums(Stages([stage], codec_of("float32"), Limits(50, 1e6)), users(3))
    assert stage.seen == [(1, ["dense", "table"])] * 3


def test_a_stage_has_to_say_that_it_reads_norms() -> None:
    class Silent(Clip):
        reads = "nothing"

    stages = Stages([Silent(1.0)], codec_of("float32"), Limits(50, 1e6))
    stages.stages = [stage for stage in stages.stages if not isinstance(stage, Limits)]
    with pytest.raises(ValueError, match='let it say `reads = "norms"`'):
        sums(stages, users(2))


def test_a_dropped_user_is_no_part_of_the_sum_even_if_its_factor_is_none() -> None:
    for members in ([Clip(1.0)], [Clip(1.0, 0.5)]):
        stages, given = Stages(members, codec_of("float32"), Limits(50, 1e6)), users(4)
        given.whole["dense"][2] = torch.nan
        given.whole["dense"][3] = torch.inf
        update = stages.empty(zeros(SPEC), 4)
        kept = stages.add(copy.deepcopy(given), update, DRAWS)
        assert kept.tolist() == [True, True, False, False]
        assert update.dropped == {"non_finite": 2, "too_large": 0, "no_negatives": 0}
        for name, tensor in sums(stages, part(given, [0, 1])).items():
            torch.testing.assert_close(update.total[name], tensor)


def test_the_same_sum_with_another_scale_has_other_noise() -> None:
    """Or the difference of two runs with other budgets would tell the sum."""
    total = Sum({"t": TensorSpec((40,))}, {"t": torch.arange(40) << 20}, 2.0**20, denominator=1.0)
    noise = [(total.with_noise(scale, DRAWS).units["t"] - total.units["t"]) / scale for scale in (1.0, 3.0)]
    assert (noise[0] - noise[1]).abs().min() > 2.0**-10
    assert torch.equal(total.with_noise(3.0, DRAWS).units["t"], total.with_noise(3.0, DRAWS).units["t"])


def test_a_user_is_dropped_and_counted_once() -> None:
    given = users(3)
    once = given.dropping(torch.tensor([True, False, False]), "too_large")
    twice = once.dropping(torch.tensor([True, True, False]), "non_finite")
    assert twice.dropped == {"too_large": 1, "non_finite": 1}
    assert twice.kept.tolist() == [False, False, True]
    assert given.kept.all()


def test_rows_that_are_added_are_added_in_either_form() -> None:
    given = users(2)
    more = Touched(torch.tensor([0, 1]), torch.tensor([39, 38]), torch.ones(2, 6))
    free = dataclasses.replace(given, rows={"table": [block for block in given.rows["table"] if block.rows.max() < 20]})
    sparse = [one.whole["table"] for one in free.adding("table", more).one_by_one()]
    dense = [
        one.adding("table", Touched(more.owner[:1], more.rows[user : user + 1], more.changes[:1]))
        for user, one in enumerate(free.one_by_one())
    ]
    for first, second in zip(sparse, dense, strict=True):
        assert torch.equal(first, second.whole["table"])
        assert torch.equal(second.touched("table").rows, torch.nonzero(first[0].any(1)).flatten())


def stages_of(codec: str, sparse: bool) -> Stages:
    made = codec_of(codec)
    return Stages([], made, Limits(50, 1e6), uplink=SparseUplink(SparseConfig("sparse"), made) if sparse else None)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("codec", CODECS)
def test_the_bytes_of_a_sum_are_those_of_the_packets_of_its_users(codec: str, sparse: bool) -> None:
    """Also of those who are left out, whose own devices would send zeros."""
    stages, given = stages_of(codec, sparse), users(4)
    given.whole["dense"][2] = torch.nan
    for together in (given, next(iter(part(given, [1]).one_by_one()))):
        update = stages.empty(zeros(SPEC), len(together))
        stages.add(copy.deepcopy(together), update, DRAWS)
        packets = []
        for user in given.keys.tolist() if len(together) > 1 else [1]:
            alone = stages.empty(zeros(SPEC), 1)
            stages.add(part(given, [user]), alone, DRAWS)
            spec, chosen = stages.sum_format(SPEC, 1)
            packets.append(chosen.encode(alone.total, spec, None))
            assert alone.packet_bytes == len(packets[-1])
        assert update.packet_bytes == sum(len(packet) for packet in packets)
    assert (update.packet_bytes < codec_of(codec).size(SPEC)) is sparse


def test_a_sum_that_is_noised_does_not_come_as_lists_of_rows() -> None:
    exact = codec_of("float32")
    with pytest.raises(ConfigError, match=r"uplink=sparse"):
        Stages([Clip(1.0, 1.0)], exact, Limits(1, 1.0), uplink=SparseUplink(SparseConfig("sparse"), exact))


def test_events_are_those_of_the_stages_that_keep_a_promise() -> None:
    stages = Stages([Clip(2.0, 3.0), Dense()], codec_of("float32"), Limits(50, 1e6))
    assert stages.events(1) == [Release("gaussian", 1.5)]
    assert stages.max_norm == 2.0


# ---- exact sums ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS)
@settings(max_examples=15, deadline=None)
@given(
    layout=st.lists(st.integers(0, 4), min_size=9, max_size=9), seed=st.integers(0, 50), cap=st.sampled_from([1, 200])
)
def test_a_sum_that_is_noised_is_the_same_to_the_bit_on_any_layout(
    codec: str, layout: list[int], seed: int, cap: int
) -> None:
    stages, given = Stages([Clip(0.7, 1.0)], codec_of(codec), Limits(cap, 1e6)), users(9, seed)
    nodes = [part(given, [user for user in range(9) if layout[user] == node]) for node in range(5) if node in layout]
    spread, alone = arrived(stages, nodes), arrived(stages, [part(given, [user]) for user in range(9)])
    for name, units in arrived(stages, [part(given, list(range(9)))]).units.items():
        assert torch.equal(spread.units[name], units)
        assert torch.equal(alone.units[name], units)
    assert spread.denominator == alone.denominator == float(given.examples.clamp(max=cap).sum())


def test_cutting_off_to_the_grid_makes_no_update_larger() -> None:
    stages, given = Stages([Clip(1e-3, 1.0)], codec_of("float32"), Limits(1, 1e6)), users(50)
    assert stages.exact
    scale = stages.units_per_one(50)
    assert scale is not None
    for user in range(50):
        units = arrived(stages, [part(given, [user])]).units
        assert float(torch.cat([u.double().flatten() for u in units.values()]).norm()) / scale <= 1e-3
        assert float(torch.cat([u.double().flatten() for u in units.values()]).norm()) / scale > 0.999e-3


def test_more_users_than_a_grid_holds_are_refused() -> None:
    stages = Stages([Clip(1.0, 1.0)], codec_of("float32"), Limits(1_000_000, 1e6))
    largest = MOST_USERS * 1_000_000 * stages.units_per_one(MOST_USERS)
    assert largest < 2**63
    with pytest.raises(FederationError, match=r"lower federation\.fraction"):
        stages.units_per_one(MOST_USERS + 1)
    assert Stages([], codec_of("float32"), Limits(1, 1.0)).units_per_one(MOST_USERS + 1) is None


def test_the_server_checks_an_exact_sum_as_any_other() -> None:
    stages = Stages([Clip(1.0, 1.0)], codec_of("float32"), Limits(1, 1e6))
    fold = UpdateFold(SPEC, 9, 1, stages.max_norm, stages.units_per_one(9))
    update = stages.empty(zeros(SPEC), 9)
    stages.add(users(2), update, DRAWS)
    spec, codec = stages.sum_format(SPEC, 2)
    form = PacketFormat(Kind.UPDATE, spec, codec, len(UPDATE_SCALARS))
    good = form.decode(form.encode(0, 1, update.total, update.scalars()))
    fold.add(good, asked=2)
    for factor in (3, 2**40):
        with pytest.raises(PacketError) as caught:
            fold.add(good._replace(tensors={name: factor * tensor for name, tensor in good.tensors.items()}), asked=2)
        assert caught.value.reason == "too_large"
    assert all(torch.equal(units, update.total[name]) for name, units in fold.sum().units.items())


# ---- noise -----------------------------------------------------------------------------------------------------------


def total(value: int = 7) -> Sum:
    return Sum(SPEC, {name: torch.full(entry.shape, value) for name, entry in SPEC.items()}, 1024.0, 4.0)


def test_the_same_sum_has_the_same_noise_and_any_other_another() -> None:
    first = total().with_noise(1.0, DRAWS)
    again = total().with_noise(1.0, Draws(3, fresh=False))
    assert all(torch.equal(units, again.units[name]) for name, units in first.units.items())
    one_more = total()
    one_more.units["table"][0, 0] += 1
    others = [
        one_more.with_noise(1.0, DRAWS),
        total(8).with_noise(1.0, DRAWS),
        total().with_noise(1.0, Draws(4, fresh=False)),
        total().with_noise(1.0, Draws(3, fresh=True)),
        total().with_noise(1.0, Draws(3, fresh=True)),
    ]
    noises = [first.units["dense"] - 7] + [
        other.units["dense"] - (8 if number == 1 else 7) for number, other in enumerate(others)
    ]
    assert len({tuple(noise.flatten().tolist()) for noise in noises}) == len(noises)


def test_a_second_noise_over_a_noised_sum_is_another() -> None:
    once = total().with_noise(1.0, DRAWS)
    twice = once.with_noise(1.0, DRAWS)
    assert not torch.equal(twice.units["table"] - once.units["table"], once.units["table"] - 7)


def test_tensors_of_one_shape_have_noise_of_their_own() -> None:
    spec = {"a": TensorSpec((50,)), "b": TensorSpec((50,))}
    same = Sum(spec, {name: torch.zeros(50, dtype=torch.int64) for name in spec}, 1024.0, 1.0)
    noised = same.with_noise(1.0, DRAWS).units
    assert not torch.equal(noised["a"], noised["b"])


def test_keys_of_a_deployment_come_from_the_system() -> None:
    fresh, simulated = Draws(1, fresh=True), Draws(1, fresh=False)
    content = {"t": torch.zeros(3)}
    assert len({fresh.once(content) for _ in range(20)}) == 20
    assert len({simulated.once(content) for _ in range(20)}) == 1
    assert simulated.once(content) != simulated.once(content, "another path")
    assert len(simulated.once(content)) == KEY_BYTES
    assert fresh.again("codec") == simulated.again("codec"), "what must repeat does so in a deployment, too"


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (200_000,)])
def test_normal_numbers_are_normal(shape: tuple[int, ...]) -> None:
    drawn: Tensor = normal(b"k" * KEY_BYTES, *shape)
    assert drawn.shape == shape
    assert drawn.dtype == torch.float64
    assert drawn.isfinite().all()
    if drawn.numel() > 1000:
        assert kstest(drawn.numpy(), "norm").pvalue > 1e-3
        half = len(drawn) // 2
        assert abs(float(torch.corrcoef(torch.stack([drawn[:half], drawn[half:]]))[0, 1])) < 5 / half**0.5
        squares = drawn**2
        assert abs(float(torch.corrcoef(torch.stack([squares[:half], squares[half:]]))[0, 1])) < 5 / half**0.5


def test_noise_that_does_not_fit_is_refused() -> None:
    for deviation in (float("nan"), float("inf"), 1e300):
        with pytest.raises(ValueError, match="does not fit"):
            total().with_noise(deviation, DRAWS)


def test_a_sum_over_nothing_has_no_mean_and_one_over_a_public_number_has() -> None:
    nobody = dataclasses.replace(total(0), denominator=0.0)
    assert nobody.mean() is None
    mean: Any = nobody.over(5.0).mean()
    assert not any(tensor.any() for tensor in mean.values())
    assert float(total(1024).over(8.0).mean()["dense"][0, 0]) == 0.125  # type: ignore[index]
