"""A limit for each row of a table and each other tensor: at its edge, on devices and on the server, and met by nobody
who is honest."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client_app.answers.app import app as client_app
from commands.local_grid import LocalGrid
from federation.aggregation import UpdateFold
from fedrec.codecs.base import Codec
from fedrec.codecs.float32 import Float32Codec, Float32Config
from fedrec.config.compose import compose
from fedrec.config.describe import load_member
from fedrec.config.paths import settle
from fedrec.core.errors import PacketError
from fedrec.core.registry import backbones, codecs, optims
from fedrec.core.rng import generator
from fedrec.core.tensors import Spec, TableSpec, Tensors, TensorSpec, zeros
from fedrec.optim.base import Adam, Recipe
from fedrec.optim.local import LocalState
from fedrec.stages.chain import Stages, plain_stages
from fedrec.stages.contributions import Contributions, Rows
from fedrec.stages.draws import Draws
from fedrec.stages.limits import Limits
from fedrec.stages.rows import RowLimits
from fedrec.wire.packet import Kind, Packet
from fedrec.wire.protocol import UPDATE_SCALARS, Setup
from server_app.run import run
from server_app.setup import make_setup

SPEC: Spec = {"table": TableSpec((4, 3)), "dense": TensorSpec((2, 3))}
DRAWS = Draws(0, fresh=False)
FLOAT32 = Float32Codec(Float32Config("float32"))
ROW, LIMIT = torch.tensor([1.0, 2.0, 2.0]), 12.0
"""A row of norm 3, which a user of weight 4 may just move."""
DENSE = torch.tensor([[2.0, 0.0, 1.0], [0.0, 2.0, 0.0]])
"""Of the same norm, as a whole."""


def limits(cap: int = 4, codec: Codec | None = None) -> Stages:
    return Stages([], codec or FLOAT32, Limits(cap, 1e6), RowLimits(lambda width: LIMIT, cap))


def one_user(row: torch.Tensor, examples: int, *, sparse: bool, dense: torch.Tensor = DENSE) -> Contributions:
    """A user who moves row 2 of the table, and row 1 half as far; and what is no table."""
    dense = dense[None].clone()
    about: tuple[Any, ...] = (np.array([examples]), torch.zeros(1))
    keys = np.array([7], dtype=np.uint64)
    if sparse:
        rows = Rows(torch.tensor([0]), torch.tensor([[1, 2]]), torch.stack([0.5 * row, row])[None].clone())
        return Contributions.of(SPEC, keys, {"table": [rows]}, {"dense": dense}, *about)
    table = torch.zeros(1, 4, 3)
    table[0, 1], table[0, 2] = 0.5 * row, row
    return Contributions.of(SPEC, keys, {}, {"table": table, "dense": dense}, *about)


BOTH = pytest.mark.parametrize("sparse", [True, False], ids=["cohort", "oracle"])


def summed(stages: Stages, given: Contributions) -> dict[str, torch.Tensor]:
    update = stages.empty(zeros(SPEC), users=1)
    stages.add(given, update, DRAWS)
    assert update.users == 1
    return update.total


@BOTH
def test_a_row_up_to_the_limit_stays_to_the_bit_and_a_longer_one_is_shortened_to_it(sparse: bool) -> None:
    for scale in (0.5, 0.999, 1.0, 1.001, 50.0, 1e10):
        total = summed(limits(), one_user(ROW * scale, 4, sparse=sparse, dense=DENSE * scale))
        if scale <= 1.0:
            assert torch.equal(total["table"][2], 4 * (ROW * scale))
            assert torch.equal(total["dense"], 4 * (DENSE * scale))
        torch.testing.assert_close(total["table"][2], 4 * ROW * min(scale, 1.0))
        torch.testing.assert_close(total["table"][1], 4 * ROW * min(scale / 2, 1.0))
        assert not total["table"][[0, 3]].any()
        torch.testing.assert_close(total["dense"], 4 * DENSE * min(scale, 1.0), msg="what is no table is one row")


@BOTH
def test_a_row_counts_with_the_users_weight(sparse: bool) -> None:
    """Four times as far is as much of the sum with a quarter of the weight; beyond the cap nothing weighs more."""
    for examples, longest in ((1, 12.0), (2, 6.0), (4, 3.0), (5, 3.0), (10**6, 3.0)):
        total = summed(limits(), one_user(100 * ROW, examples, sparse=sparse, dense=100 * DENSE))
        torch.testing.assert_close(total["table"][2].norm(), torch.tensor(longest * min(examples, 4)))
        torch.testing.assert_close(total["dense"].norm(), torch.tensor(longest * min(examples, 4)))


@BOTH
def test_what_is_not_finite_is_still_left_out(sparse: bool) -> None:
    for value in (float("nan"), float("inf")):
        stages, row = limits(), torch.tensor([value, 100.0, 1.0])
        update = stages.empty(zeros(SPEC), users=1)
        assert not bool(stages.add(one_user(row, 4, sparse=sparse), update, DRAWS))
        assert not bool(stages.add(one_user(ROW, 4, sparse=sparse, dense=DENSE * value), update, DRAWS))
        assert update.dropped["non_finite"] == 2


def test_rounding_may_lengthen_a_row_and_the_server_lets_it_through() -> None:
    """Beside a row of one number, another's four equal ones lie half way between two steps: some users' all go up."""
    codec: Codec = codecs.get("int8")(load_member("codec", "int8"))
    spec: Spec = {"table": TableSpec((2, 4))}
    stages = Stages([], codec, Limits(1, 1e6), RowLimits(lambda width: LIMIT, 1))
    table = LIMIT * torch.tensor([[1.0, 0, 0, 0], [0.5, 0.5, 0.5, 0.5]]).expand(200, 2, 4)
    given = Contributions.of(
        spec, np.arange(200, dtype=np.uint64), {}, {"table": table}, np.full(200, 9), torch.ones(200)
    )
    longest = float(stages.on_devices(given, DRAWS).whole["table"].norm(dim=2).max())
    assert longest == pytest.approx(LIMIT * 64 / 63.5)
    assert 1.007 * LIMIT < longest <= stages.rows_of_one(spec)["table"] == pytest.approx(LIMIT * (1 + 2 / 127))


@pytest.mark.parametrize("name", ["int8", "float16", "float32"])
def test_no_rounding_takes_a_row_beyond_what_the_server_lets_through(name: str) -> None:
    codec: Codec = codecs.get(name)(load_member("codec", name))
    spec: Spec = {"table": TableSpec((30, 64))}
    stages = Stages([], codec, Limits(4, 1e6), RowLimits(lambda width: LIMIT, 4))
    (bound,) = stages.rows_of_one(spec).values()
    assert LIMIT <= bound < 1.07 * LIMIT
    changes = torch.randn(50, 30, 64, generator=generator(0, "changes"))
    given = Contributions.of(
        spec, np.arange(50, dtype=np.uint64), {}, {"table": changes}, np.full(50, 9), torch.ones(50)
    )
    rows = 4 * stages.on_devices(given, DRAWS).whole["table"].norm(dim=2)
    assert float(rows.max()) <= bound * 1.0001, "and the room that the server gives for the rounding of sums"
    assert float(rows.min()) > 0.9 * LIMIT


def test_without_a_limit_nothing_is_held_to_one() -> None:
    assert limits().rows_of_one(SPEC) == {"table": LIMIT, "dense": LIMIT}
    assert plain_stages(Limits(4, 1e6)).rows_of_one(SPEC) == {}


# The server ----------------------------------------------------------------------------------------------------------


def reply(tensors: Tensors, users: float, weight: float) -> Packet:
    scalars = dict.fromkeys(UPDATE_SCALARS, 0.0) | {"weight": weight, "users": users, "examples": weight}
    return Packet(Kind.UPDATE, 0, 1, tuple(scalars.values()), zeros(SPEC) | tensors)


@pytest.mark.parametrize("exact", [False, True], ids=["float", "grid"])
@pytest.mark.parametrize("name", SPEC)
def test_the_server_holds_each_row_of_a_sum_to_what_its_users_may_move(name: str, exact: bool) -> None:
    units = 2.0**20 if exact else None
    moved = {"table": torch.stack([0 * ROW, 0.9 * ROW, ROW, 0 * ROW]), "dense": DENSE}[name]
    what = {"table": "row 2 of table", "dense": "dense"}[name]
    for users, scale, taken in ((1, 1.0, True), (1, 1.001, False), (3, 3.0, True), (3, 3.003, False)):
        fold = UpdateFold(SPEC, 10, 4, 1e6, units, dict.fromkeys(SPEC, LIMIT))
        sums = 4 * scale * moved  # of weight times change
        sent = reply({name: (sums.double() * 2.0**20).long() if exact else sums}, users, 4.0 * users)
        if taken:
            fold.add(sent, asked=3)
            assert fold.scalar("users") == users
            continue
        with pytest.raises(PacketError, match=f"users move {what} by .*federation.max_row_norm") as caught:
            fold.add(sent, asked=3)
        assert caught.value.reason == "row_too_large"
        assert fold.sum().mean() is None


def test_the_servers_limit_of_the_whole_update_at_its_edge() -> None:
    """A norm of 5 a unit of weight, with weight 2: 10, and the room for the rounding of float32 above it."""
    for norm, taken in ((10.0, True), (10.0005, True), (10.01, False), (100.0, False)):
        fold = UpdateFold({"t": TensorSpec((2,))}, 10, 4, 5.0)
        scalars = dict.fromkeys(UPDATE_SCALARS, 0.0) | {"weight": 2.0, "users": 1.0, "examples": 2.0}
        sent = Packet(Kind.UPDATE, 0, 1, tuple(scalars.values()), {"t": torch.tensor([0.6, 0.8]) * norm})
        if taken:
            fold.add(sent, asked=1)
            continue
        with pytest.raises(PacketError) as caught:
            fold.add(sent, asked=1)
        assert caught.value.reason == "too_large"


# What recipes can make of a row ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 7, 40])
def test_no_gradients_take_adam_farther_than_its_reach(steps: int) -> None:
    rule = Adam(0.01)
    rng = generator(steps, "reach")
    scale = torch.exp(6 * torch.randn(steps, 4_000, generator=rng))
    growing = torch.arange(1, steps + 1)[:, None] ** torch.linspace(0, 8, 200)
    gradients = torch.cat([scale * torch.randn(steps, 4_000, generator=rng), growing, torch.ones(steps, 1)], 1)
    moved = torch.zeros(gradients.shape[1])
    state = LocalState(rule, moved)
    for gradient in gradients:
        state.step(moved, gradient.clone())
    assert float(moved.abs().max()) <= rule.reach(steps) * 1.0001
    assert float(moved[-1].abs()) > 0.84 * rule.reach(steps), "a gradient that stays comes near"


def recipe(name: str, backbone: str = "fedmf", **values: Any) -> Recipe:
    made: Recipe = optims.get(name)(load_member("optim", name, **values), backbones.get(backbone).advice)
    return made


def test_what_recipes_make_of_a_row_by_hand() -> None:
    """Two steps of 0.01 in each of 16 numbers; a gradient may be of any length."""
    assert recipe("paper").row_reach(16) == pytest.approx(4 * 2 * 0.01, rel=0.01)
    assert recipe("paper", local_epochs=1, lr=0.5).row_reach(1) == pytest.approx(0.5, rel=0.01)
    assert math.isinf(recipe("fast").row_reach(16))


@pytest.mark.parametrize(
    ("overrides", "limit"),
    [
        ([], 200 * 4 * 2 * 0.01),
        (["runtime=deployment"], 200 * 4 * 2 * 0.01),
        (["optim=fast"], None),
        (["optim=fast", "runtime=deployment"], 10.0),
        (["optim=fast", "federation.max_row_norm=3.0"], 3.0),
        (["federation.max_row_norm=null", "runtime=deployment"], None),
    ],
)
def test_what_a_run_is_held_to(tmp_path: Path, overrides: list[str], limit: float | None) -> None:
    runtime = ["dataset=table", f"dataset.item_table={tmp_path}/i.csv"] if "runtime=deployment" in overrides else []
    config = compose([*overrides, *runtime, f"runs_dir={tmp_path}", "run_id=r"], base=None)
    told = Setup.from_json(make_setup(config, 30, "", "", None).to_json())
    found = told.stages.rows_of_one({"table": TableSpec((30, 16)), "dense": TensorSpec((4, 4))})
    assert found == ({} if limit is None else dict.fromkeys(("table", "dense"), pytest.approx(limit, rel=0.01)))


def test_an_honest_run_meets_no_limit_and_is_the_same_to_the_last_digit(tmp_path: Path) -> None:
    """The defaults on the embedded shop, a little shorter: with the limits and without them."""
    found = []
    for limit in ("auto", "null"):
        texts = ["strategy.rounds=12", "strategy.warmup_rounds=4", f"federation.max_row_norm={limit}", "run_id=r"]
        texts += [f"runs_dir={tmp_path}/{limit}", f"cache_dir={tmp_path}/cache", "evaluation.baselines=false"]
        found.append(run(settle(compose(texts, base=None), None), texts, LocalGrid(client_app, 2)))
    assert found[0]["test"] == found[1]["test"]
    assert found[0]["warnings"] == []
