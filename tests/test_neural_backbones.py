"""What `fedncf` and `pfedrec` promise beyond the contract: their exact size, their function, and dropout."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedrec.backbones.base import Advice, Backbone, ScoreContext
from fedrec.backbones.fedncf import FedNCF
from fedrec.backbones.mlp import Mlp, dropout
from fedrec.backbones.pfedrec import PFedRec
from fedrec.config.compose import compose
from fedrec.config.describe import load_member
from fedrec.core.errors import ConfigError
from fedrec.core.rng import generator
from fedrec.core.tensors import Spec, Tensors

KEYS = np.array([3, 2**64 - 1, 17], dtype=np.uint64)
RANKING = ScoreContext(training=False)


def fedncf(dim: int = 32, **values: Any) -> FedNCF:
    return FedNCF(load_member("backbone", "fedncf", **values), dim)


def pfedrec(dim: int = 32, **values: Any) -> PFedRec:
    return PFedRec(load_member("backbone", "pfedrec", **values), dim)


def numbers(spec: Spec) -> int:
    return sum(entry.size for entry in spec.values())


def test_fedncf_has_the_papers_size() -> None:
    backbone = fedncf()
    assert numbers(backbone.shared) == (64 * 64 + 64) + (64 * 128 + 128) + (128 * 64 + 64) + (64 + 1) == 20_801
    assert sum(entry.nbytes for entry in backbone.shared.values()) == 83_204
    assert numbers(backbone.private) == 32


def test_pfedrec_has_the_papers_size_and_shares_nothing() -> None:
    backbone = pfedrec()
    assert numbers(backbone.private) == (32 * 64 + 64) + (64 * 32 + 32) + (32 + 1) == 4_225
    assert backbone.shared == {}


def test_both_follow_their_papers_loss_and_rate() -> None:
    assert fedncf().advice == pfedrec().advice == Advice("bce", 0.001)


def network(widths: list[int], tensors: Tensors) -> nn.Sequential:
    """The framework's own layers with our numbers; the first weight's parts one below the other, as they are sorted."""
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(pairwise(widths), start=1):
        linear = nn.Linear(before, after)
        parts = [f"weight1.{part}" for part in ("user", "item")] if number == 1 else [f"weight{number}"]
        with torch.no_grad():
            linear.weight.copy_(torch.cat([tensors[part] for part in parts if part in tensors]).T)
            linear.bias.copy_(tensors[f"bias{number}"])
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def test_fedncf_is_the_mlp_over_user_and_item_put_together() -> None:
    backbone = fedncf(6, hidden=[5, 7])
    shared, private = backbone.init_shared(generator(0)), backbone.init_private(0, KEYS)
    items = torch.randn(3, 4, 6, generator=generator(1))
    pairs = torch.cat([private["user"][:, None].expand(3, 4, 6), items], -1)
    expected = network([12, 5, 7, 1], shared)(pairs).squeeze(-1)
    torch.testing.assert_close(backbone.score(shared, private, items, RANKING), expected)


def test_pfedrec_is_each_users_own_mlp_over_the_item() -> None:
    backbone = pfedrec(6, hidden=[5, 7])
    private = backbone.init_private(0, KEYS)
    own = {name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator(2)) for name, tensor in private.items()}
    items = torch.randn(3, 4, 6, generator=generator(1))
    scores = backbone.score({}, own, items, RANKING)
    for user in range(3):
        head = network([6, 5, 7, 1], {name: tensor[user] for name, tensor in own.items()})
        torch.testing.assert_close(scores[user], head(items[user]).squeeze(-1))


def test_layers_start_as_the_frameworks_do() -> None:
    """Uniform within ±1 / sqrt(what enters the layer), also where the first weight is kept in parts."""
    made = Mlp({"user": 200, "item": 200}, [300, 100]).init(generator(0))
    entering = {"weight1.user": 400, "weight1.item": 400, "bias1": 400, "weight2": 300, "bias3": 100}
    for name, width in entering.items():
        bound = width**-0.5
        assert made[name].abs().max() <= bound
        if made[name].numel() > 1000:
            assert made[name].abs().max() > 0.98 * bound
            assert made[name].std() == pytest.approx(bound / 3**0.5, rel=0.02)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("backbone.dropout=1.0", "expected a number >= 0 and < 1, got the number 1.0"),
        ("backbone.hidden=[]", "at least 1 long"),
        ("backbone.hidden=[0]", "expected a list of"),
        ("backbone.init_std=0", "expected a number > 0"),
    ],
)
def test_a_network_that_cannot_be_is_a_problem(override: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["backbone=fedncf", override], base=None)
    assert problem in caught.value.problems[0]


# Dropout -------------------------------------------------------------------------------------------------------------


def context(*leading: int, seed: int = 0) -> ScoreContext:
    """A context that trains, with independent draws for every name."""

    def uniform(name: str, width: int) -> Tensor:
        return torch.rand(*leading, width, generator=generator(seed, name), dtype=torch.float64).float()

    return ScoreContext(training=True, uniform=uniform)


def test_dropout_keeps_the_mean_and_drops_the_share_it_says() -> None:
    drop = dropout(0.3, context(2_000))
    assert drop is not None
    activations = torch.rand(2_000, 50, generator=generator(9)) + 0.5
    dropped = drop("hidden1", activations)
    share = (dropped == 0).double().mean()
    # Standard errors: sqrt(.3 * .7 / 1e5) of the share; of the mean of x * kept / .7, below 0.7 / sqrt(1e5).
    assert float(share) == pytest.approx(0.3, abs=4 * (0.21 / 1e5) ** 0.5)
    assert float(dropped.mean()) == pytest.approx(float(activations.mean()), abs=4 * 0.7 / 1e5**0.5)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], activations[kept] / 0.7)
    assert not torch.equal(drop("hidden2", activations) == 0, dropped == 0), "every layer has draws of its own"


def test_ranking_and_a_rate_of_zero_drop_nothing() -> None:
    assert dropout(0.5, RANKING) is None
    assert dropout(0.0, context(1)) is None


def test_training_without_draws_is_an_error_and_not_training_without_dropout() -> None:
    with pytest.raises(ValueError, match=r"dropout 0\.5 needs the context's `uniform`"):
        dropout(0.5, ScoreContext(training=True))


@pytest.mark.parametrize("made", [fedncf, pfedrec])
def test_every_hidden_layer_is_dropped_while_training_alone(made: Any) -> None:
    backbone: Backbone = made(8)
    with_dropout: Backbone = made(8, dropout=0.5)
    private, shared = backbone.init_private(0, KEYS), backbone.init_shared(generator(0))
    items = torch.randn(3, 6, 8, generator=generator(1))
    plain = backbone.score(shared, private, items, RANKING)
    assert torch.equal(with_dropout.score(shared, private, items, RANKING), plain)
    assert torch.equal(backbone.score(shared, private, items, context(3, 6)), plain)
    names: list[str] = []
    draws = context(3, 6).uniform
    assert draws is not None

    def recorded(name: str, width: int) -> Tensor:
        names.append(f"{name}:{width}")
        return draws(name, width)

    dropped = with_dropout.score(shared, private, items, dataclasses.replace(context(3, 6), uniform=recorded))
    assert not torch.equal(dropped, plain)
    hidden = backbone.config.hidden
    assert names == [f"hidden{number}:{width}" for number, width in enumerate(hidden, start=1)]
    other = with_dropout.score(shared, private, items, context(3, 6, seed=1))
    assert not torch.equal(other, dropped)
