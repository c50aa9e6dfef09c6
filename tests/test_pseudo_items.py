"""Pseudo items: what is added to an update, and what that hides from a server that sees one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from client_app.homes.users import Cohort
from client_app.training.engine import GlobalModel
from client_app.training.oracle import OracleEngine
from fedrec.backbones.base import Advice
from fedrec.config.describe import load_member
from fedrec.core.registry import backbones, embeddings, optims
from fedrec.core.rng import counter_bits, generator
from fedrec.core.tensors import Spec, TableSpec, Tensors, TensorSpec
from fedrec.data.negatives import NegativeSampler
from fedrec.privacy.pseudo_items import PseudoItems, PseudoItemsConfig, distinct
from fedrec.stages.chain import plain_stages
from fedrec.stages.contributions import Contributions
from fedrec.stages.draws import Draws
from fedrec.stages.limits import Limits
from peft_embeddings.model import Model

ROWS, WIDTH = 60, 5
SPEC: Spec = {"table": TableSpec((ROWS, WIDTH)), "dense": TensorSpec((ROWS, WIDTH))}
VALUES = ["resampled", "normal"]


def mechanism(share: float = 1.0, values: Any = "resampled") -> PseudoItems:
    return PseudoItems(PseudoItemsConfig("pseudo_items", share, values))


def protected(made: PseudoItems, delta: Tensors, spec: Spec, seed: int) -> Tensors:
    """What one user's device sends instead of its update."""
    whole = {name: tensor[None] for name, tensor in delta.items()}
    key, one = np.array([5], dtype=np.uint64), np.array([1])
    given = Contributions.of(spec, key, {}, whole, one, torch.zeros(1))
    return {name: tensor[0] for name, tensor in made.on_devices(given, Draws(seed, fresh=False)).whole.items()}


def update(touched: int, seed: int = 0) -> Tensors:
    rng = generator(seed, "update")
    table = torch.zeros(ROWS, WIDTH)
    table[torch.randperm(ROWS, generator=rng)[:touched]] = torch.randn(touched, WIDTH, generator=rng)
    return {"table": table, "dense": torch.randn(ROWS, WIDTH, generator=rng)}


def is_touched(table: Tensor) -> Tensor:
    return (table != 0).any(1)


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("touched", [0, 1, 7, 29, 50, 60])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0, 2.5])
def test_real_rows_stay_and_so_many_others_are_added(touched: int, share: float, values: str) -> None:
    before = update(touched)
    after = protected(mechanism(share, values), before, SPEC, 3)
    real = is_touched(before["table"])
    assert torch.equal(after["table"][real], before["table"][real])
    added = int(is_touched(after["table"]).sum()) - touched
    assert added == min(int(share * touched + 0.5), ROWS - touched)
    assert torch.equal(after["dense"], before["dense"]), "a tensor that is no table is left alone"


@pytest.mark.parametrize("values", VALUES)
def test_a_share_of_zero_has_no_effect(values: str) -> None:
    before = update(20)
    after = protected(mechanism(0.0, values), before, SPEC, 3)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_resampled_rows_are_twins_of_real_ones() -> None:
    before = update(20)
    table = protected(mechanism(2.0), before, SPEC, 3)["table"]
    counts: dict[tuple[float, ...], int] = {}
    for row in table[is_touched(table)].tolist():
        counts[tuple(row)] = counts.get(tuple(row), 0) + 1
    assert len(counts) == 20
    assert set(counts.values()) == {3}, "every real row has two twins"


def test_normal_rows_have_the_mean_and_the_covariance_of_the_real_ones() -> None:
    rng = generator(1, "mixed")
    real = torch.randn(12, WIDTH, generator=rng, dtype=torch.float64) @ torch.randn(
        WIDTH, WIDTH, generator=rng, dtype=torch.float64
    )
    real[:, 1] = 2 * real[:, 0]  # changes that lie in a plane stay there
    _, changes = mechanism(1000.0, "normal").added_rows("table", 20_000, torch.arange(12), real, 5)
    assert changes.shape == (12_000, WIDTH)
    torch.testing.assert_close(changes.mean(0), real.mean(0), atol=0.1, rtol=0.05)
    torch.testing.assert_close(torch.cov(changes.T), torch.cov(real.T, correction=0), atol=0.5, rtol=0.1)
    torch.testing.assert_close(changes[:, 1], 2 * changes[:, 0], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("touched", [1, 7, 29])
def test_every_untouched_row_is_equally_likely(touched: int) -> None:
    before, times = update(touched), 2_000
    real, counts = is_touched(before["table"]), torch.zeros(ROWS)
    for seed in range(times):
        counts += is_touched(protected(mechanism(), before, SPEC, seed)["table"])
    chance = touched / (ROWS - touched)
    error = 5 * (times * chance * (1 - chance)) ** 0.5
    assert (counts[real] == times).all()
    assert ((counts[~real] - times * chance).abs() < error).all()


@pytest.mark.parametrize(("bound", "count"), [(10, 0), (10, 3), (10, 10), (5_000, 5), (100_000, 40)])
def test_distinct_numbers_are_distinct_and_uniform(bound: int, count: int) -> None:
    means = []
    for seed in range(300):
        numbers = distinct(bound, count, generator(seed))
        assert len(set(numbers.tolist())) == count == len(numbers)
        assert all(0 <= number < bound for number in numbers.tolist())
        means += [numbers.double().mean() / (bound - 1)] if count else []
    if 0 < count < bound:
        assert abs(float(np.mean(means)) - 0.5) < 5 * (1 / 12 / 300 / count) ** 0.5


# What a server sees --------------------------------------------------------------------------------------------------


def real_updates(users: int) -> list[tuple[Spec, Tensors]]:
    """Updates of single users as the recipe's default makes them: two steps of Adam."""
    n_items, dim = 300, 16
    backbone = backbones.get("fedmf")(load_member("backbone", "fedmf"), dim)
    model = Model(embeddings.get("full")(load_member("embedding", "full"), n_items, dim), backbone)
    rng = generator(0, "seen")
    trainable, frozen = model.init(torch.randn(n_items, dim, generator=rng) / 4, {}, rng)
    recipe = optims.get("paper")(load_member("optim", "paper"), Advice("bpr", 0.01))
    engine = OracleEngine(recipe, NegativeSampler(np.arange(n_items)), plain_stages(Limits(1, 1e9)))
    keys, found = counter_bits(0, np.arange(users)), []
    for user in range(users):
        items = np.random.default_rng(user).permutation(n_items)[: 10 + user].astype(np.int64)
        one = Cohort(keys[user : user + 1], np.array([0, len(items)]), items)
        private = backbone.init_private(0, one.keys)
        trained = engine.train(GlobalModel(model, trainable, frozen), one, private, 7)
        found.append((model.trainable, trained.update.total))
    return found


def advantage(feature: Any, values: str) -> tuple[float, float]:
    """How far from 1/2 the chance is that a real row has the larger feature than a pseudo one; 3 standard errors."""
    wins = pairs = rows = 0.0
    for number, (spec, delta) in enumerate(real_updates(30)):
        (name,) = delta
        real = is_touched(delta[name])
        rows += float(real.sum())
        sent = protected(mechanism(1.0, values), delta, spec, 100 + number)[name]
        mine, others = feature(sent[real]), feature(sent[is_touched(sent) & ~real])
        wins += float(((mine[:, None] > others).double() + 0.5 * (mine[:, None] == others).double()).sum())
        pairs += len(mine) * len(others)
    return abs(wins / pairs - 0.5), 3 * (2 / (12 * rows)) ** 0.5


FEATURES = {
    "norm": lambda rows: rows.norm(dim=1),
    "flatness": lambda rows: rows.abs().mean(1) / rows.norm(dim=1),
    "sum": lambda rows: rows.sum(1),
}


@pytest.mark.parametrize("feature", FEATURES)
def test_a_server_cannot_tell_resampled_rows_from_real_ones(feature: str) -> None:
    found, error = advantage(FEATURES[feature], "resampled")
    assert found < error


def test_normal_rows_are_told_from_those_of_adam_by_their_flatness() -> None:
    """Why the paper's own choice is not the default: its rows look like gradients, and ours are steps of Adam."""
    found, error = advantage(FEATURES["flatness"], "normal")
    assert found > 0.25 > error


def test_normal_rows_hide_normal_ones() -> None:
    wins = []
    for seed in range(60):
        before = update(25, seed)
        table = protected(mechanism(1.0, "normal"), before, SPEC, seed)["table"]
        real = is_touched(before["table"])
        mine, others = table[real].norm(dim=1), table[is_touched(table) & ~real].norm(dim=1)
        wins.append(float((mine[:, None] > others).double().mean()))
    assert abs(float(np.mean(wins)) - 0.5) < 3 * (2 / (12 * 25 * 60)) ** 0.5
