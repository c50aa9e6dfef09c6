"""Runs that begin with a statistic: what users say goes the way of an update, and is in every vector afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from commands.baseline.statistics import statistics
from commands.baseline.world import World
from federation.aggregation import UpdateFold
from federation.training import Training
from fedrec.config.compose import compose
from fedrec.config.describe import from_dict
from fedrec.core.errors import ConfigError, PacketError
from fedrec.core.tensors import Tensors
from fedrec.data.statistics import items_had
from fedrec.wire.packet import Kind, Packet
from fedrec.wire.protocol import UPDATE_SCALARS
from server_app.watching import Silent

Federate = Callable[..., Any]

ASKED = ["strategy=fedpeft", "embedding=popularity", "strategy.warmup_rounds=0", "strategy.rounds=1", "optim=fast"]
ALL = [*ASKED, "federation.fraction=1.0", "evaluation.every=0", "base_table.start=random"]
STARTED = ["strategy=full", "statistics.start=popularity", "optim=fast", "base_table.start=random"]
NAME = "trainable.embedding.popularity"


def world_of(outcome: Any) -> World:
    config: Any = from_dict(yaml.safe_load((outcome.folder / "config.yaml").read_text()))
    return World.read(config, config.cache_dir, Silent())


def by_hand(world: World, items: int) -> Tensor:
    """The mean over users of a vector of norm 1 with a number for each of a user's items, one user after the other."""
    cohort, total = world.users.training(np.arange(len(world.users))), torch.zeros(items, 1, dtype=torch.float64)
    for start, end in zip(cohort.offsets, cohort.offsets[1:], strict=False):
        mine = set(cohort.items[start:end].tolist())
        for item in mine:
            total[item] += 1 / len(mine) ** 0.5
    return (total / len(cohort)).float()


def table(outcome: Any, round: int | None = None) -> Tensor:
    found: Tensors = outcome.checkpoint(round)
    return found[NAME]


def test_it_is_the_mean_of_what_users_say_wherever_they_live(federate: Federate) -> None:
    one = federate(*ALL, nodes=1)
    expected = by_hand(world_of(one), 100)
    torch.testing.assert_close(table(one), expected, atol=1e-6, rtol=1e-5)
    assert len(set(expected.flatten().tolist())) > 5, "users of different lengths say different things of an item"
    for nodes in (7, 60):
        many = federate(*ALL, nodes=nodes)
        torch.testing.assert_close(table(many), table(one), atol=1e-6, rtol=1e-5)
        assert many.summary["bytes_per_user"] == one.summary["bytes_per_user"]


def test_it_is_the_baseline_s(federate: Federate, tmp_path: Path) -> None:
    outcome = federate(*ALL)
    found, _ = statistics("popularity", world_of(outcome), None, tmp_path)
    torch.testing.assert_close(table(outcome), found.vectors / 60, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("engine", ["cohort", "oracle"])
def test_in_a_secure_sum_it_is_the_one_on_the_grid(federate: Federate, engine: str) -> None:
    given = [*ALL, "federation.max_row_norm=1", f"engine={engine}"]
    grid = federate(*given, "aggregation=grid", nodes=4)
    assert torch.equal(table(federate(*given, "aggregation=secagg", nodes=4)), table(grid))
    torch.testing.assert_close(table(grid), table(federate(*ALL)), atol=2e-3, rtol=0)


def noise(outcome: Any) -> Tensor:
    """What was added to a sum of parts of norm 1."""
    return (table(outcome) - by_hand(world_of(outcome), 100)) * 60


def test_with_central_noise_it_is_a_release_of_the_run_s_account(federate: Federate) -> None:
    given = [*ALL, "privacy=central_gaussian", "privacy.epsilon=8"]
    outcome = federate(*given)
    config: Any = from_dict(yaml.safe_load((outcome.folder / "config.yaml").read_text()))
    deviation = config.privacy.noise_multiplier
    assert 0.8 * deviation < float(noise(outcome).std()) < 1.2 * deviation
    assert abs(float(noise(outcome).mean())) < 0.5 * deviation, "parts were clipped"
    (line,) = [json.loads(line) for line in (outcome.folder / "ledger.jsonl").read_text().splitlines()]
    assert line["round"] == 1
    assert 7.9 < outcome.summary["privacy"]["epsilon"] <= 8.0
    assert torch.equal(table(federate(*given, nodes=7)), table(outcome)), "the same wherever users live"


def test_with_shares_of_noise_on_devices_too(federate: Federate) -> None:
    given = [*ALL, "privacy=distributed_gaussian", "privacy.epsilon=8", "federation.fraction=1.0"]
    plain = federate(*given, "privacy.survivors=40", nodes=4)
    config: Any = from_dict(yaml.safe_load((plain.folder / "config.yaml").read_text()))
    deviation = config.privacy.noise_multiplier * (60 / 40) ** 0.5
    assert 0.8 * deviation < float(noise(plain).std()) < 1.2 * deviation
    assert torch.equal(table(federate(*given, "privacy.survivors=40", "aggregation=secagg", nodes=4)), table(plain))


def test_the_noise_is_that_of_the_clip(federate: Federate) -> None:
    given = [*ALL, "privacy=central_gaussian", "privacy.epsilon=null", "privacy.noise_multiplier=3"]
    small, large = (float(noise(federate(*given, f"privacy.clip={clip}")).std()) for clip in (0.25, 1))
    assert 0.9 < small / large < 1.1, "parts are as long as the clip, and so is what they are divided by"


@pytest.mark.parametrize(
    ("weight", "value", "reason"),
    [(1, 0.5, None), (1, -1.0, None), (2, 0.5, "wrong_weight"), (1, 1.1, "too_large")],
)
def test_a_node_says_no_more_than_its_users_can(
    federate: Federate, weight: float, value: float, reason: str | None
) -> None:
    folds: list[UpdateFold] = []

    class Kept(Training):
        def _empty_fold(self, users: int) -> UpdateFold:
            folds.append(super()._empty_fold(users))
            return folds[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("federation.kinds.Training", Kept)
        federate(*ALL, nodes=1)
    name = NAME.removeprefix("trainable.")
    scalars = dict.fromkeys(UPDATE_SCALARS, 0.0) | {"weight": weight, "users": 1.0, "examples": 1.0}
    told = torch.zeros(100, 1)
    told[3] = value
    packet = Packet(Kind.UPDATE, 0, 1, tuple(scalars.values()), {name: told})
    if reason is None:
        folds[-1].check(packet, 1)
    else:
        with pytest.raises(PacketError) as caught:
            folds[-1].check(packet, 1)
        assert caught.value.reason == reason


def test_who_has_nothing_says_nothing_and_chunks_of_users_change_nothing(
    federate: Federate, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = table(federate(*ALL, nodes=1))
    monkeypatch.setattr("client_app.training.engine._COUNTED_AT_ONCE", 7)
    assert torch.equal(table(federate(*ALL, nodes=1)), whole)
    parts = items_had(np.array([0, 0, 2]), np.array([4, 4]))
    assert parts.norms(2).tolist() == [0.0, 1.0]


def test_more_rounds_are_a_mean_with_less_noise(federate: Federate) -> None:
    given = [*ALL, "privacy=central_gaussian", "privacy.epsilon=null", "privacy.noise_multiplier=10"]
    one, many = (float(noise(federate(*given, f"strategy.rounds={rounds}")).std()) for rounds in (1, 9))
    assert 0.2 < many / one < 0.5


def test_the_phases_after_it_begin_with_it_in_the_last_place(federate: Federate) -> None:
    outcome = federate(*STARTED, "strategy.rounds=2", "checkpoint_every=1", "federation.fraction=1.0")
    assert [line["phase"] for line in outcome.metrics] == ["statistics", "full"]
    first = outcome.checkpoint(1)
    expected = first["frozen.base"].clone()
    expected[:, -1:] += 0.25 * torch.log1p(first[NAME] / 0.001)
    moved = (outcome.checkpoint(2)["trainable.embedding.items"] - expected).abs()
    assert float(moved.max()) <= 0.0201, "one step of the server's Adam away"
    assert float((expected - first["frozen.base"]).abs().max()) > 0.3


def test_it_is_sent_as_what_describe_says(federate: Federate) -> None:
    from commands.describe import describe

    outcome = federate(*STARTED, "strategy.rounds=3", "uplink=sparse", "federation.fraction=1.0", nodes=60)
    config: Any = from_dict(yaml.safe_load((outcome.folder / "config.yaml").read_text()))
    counting = describe(config, 100).phases[0]
    moved = outcome.summary["bytes_per_user"]["by_phase"]["statistics"]
    assert counting.least_up < moved["up"] <= counting.up
    assert moved["down"] == counting.down


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["optim=paper", "federation.weight_cap=20"],
            r"max_row_norm=auto: optim=paper limits .*give federation\.max_row_norm",
        ),
        (["privacy=central_laplace", "privacy.epsilon=8"], r"privacy=central_laplace: it bounds the sum"),
        (["privacy=central_gaussian", "privacy.epsilon=8", "privacy.clip=2"], r"privacy\.clip=2: .* give 1 or less"),
        (["strategy=fedpeft", "embedding=popularity", "strategy.warmup_rounds=0"], r"give one of the two"),
        (["federation.max_row_norm=0.5"], r"max_row_norm=0\.5: it limits"),
        (["strategy.rounds=1"], r"statistics\.rounds=1 must be below strategy\.rounds=1"),
        (["downlink=actions"], r"give downlink=dense"),
        (["strategy=fedpeft", "strategy.rounds=4", "strategy.warmup_rounds=3"], r"strategy\.warmup_rounds=3 must be"),
    ],
)
def test_what_does_not_go_with_it_is_refused(overrides: list[str], said: str) -> None:
    given = {text.partition("=")[0]: text for text in [*STARTED, "strategy.rounds=4", *overrides]}
    with pytest.raises(ConfigError, match=said):
        compose(list(given.values()), base=None)
