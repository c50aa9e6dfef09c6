"""The mixing of FELLRec: the formulae on cases worked out by hand, in any order of the groups."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import pytest
import torch

from federation.base import FederatedStrategy, Given
from fedrec.config.compose import compose
from fedrec.core.errors import ConfigError
from fedrec.core.tensors import Tensors
from strategies.fellrec import FellRecConfig, FellRecStrategy, likenesses, mixture, takes


def config(mixing: str = "likeness", alpha: float = 0.7, beta: float = 1.0) -> FellRecConfig:
    return FellRecConfig("fellrec", 10, mixing, alpha, beta)  # type: ignore[arg-type]


def model(*numbers: float) -> Tensors:
    return {"a": torch.tensor(numbers[:2]), "b": torch.tensor([[number] for number in numbers[2:]])}


def given(loss: float | None, weight: float = 1.0, round: int = 1) -> Given:
    return Given(round, {}, loss, weight)


def test_two_groups_by_hand() -> None:
    """Orthogonal parameters: s = 1/2. Equal losses: l = 1/2, and in the first round w = tanh(.7 / (1/2)^1)."""
    models = {"x": model(1.0, 0.0, 0.0), "y": model(0.0, 2.0, 0.0)}
    share = 0.5 * math.tanh(0.7 * 2)
    mixed = mixture(models, {"x": given(0.3), "y": given(0.3)}, config())
    assert mixed["x"]["a"].tolist() == pytest.approx([1 / (1 + share), 2 * share / (1 + share)])
    assert mixed["y"]["a"].tolist() == pytest.approx([share / (1 + share), 2 / (1 + share)])


def test_a_group_that_has_learned_less_takes_less_at_first() -> None:
    """Losses .1 and .15 over .05: l = softmax(2, 3) = (1, e) / (1 + e); beta = 1/2: the exponent is 2 in round 1."""
    taken = takes([0.10, 0.15], 0, alpha=0.7, beta=0.5)
    e = math.e
    assert taken.tolist() == pytest.approx([math.tanh(0.7 * (1 + e) ** 2), math.tanh(0.7 * ((1 + e) / e) ** 2)])
    assert taken[0] > taken[1]


def test_opposite_parameters_share_nothing_and_equal_ones_all() -> None:
    found = likenesses([model(1.0, 2.0, 3.0), model(-1.0, -2.0, -3.0), model(2.0, 4.0, 6.0)])
    torch.testing.assert_close(found[0], torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64))


def test_all_is_made_of_the_old_parameters_in_any_order_of_the_groups() -> None:
    rng = torch.Generator().manual_seed(0)
    models = {name: {"t": torch.randn(4, 3, generator=rng)} for name in "abcd"}
    told = {name: given(0.1 * place, round=2) for place, name in enumerate("abcd")}
    expected = mixture(models, told, config())
    for order in itertools.permutations("abcd"):
        found = mixture({name: models[name] for name in order}, {name: told[name] for name in order}, config())
        for name in "abcd":
            assert torch.equal(found[name]["t"], expected[name]["t"])
    by_hand = slowly(models, told)
    for name in "abcd":
        torch.testing.assert_close(expected[name]["t"], by_hand[name], atol=1e-6, rtol=1e-6)


def slowly(models: dict[str, Tensors], told: dict[str, Given]) -> dict[str, torch.Tensor]:
    """The paper's formulae, number by number."""
    exps = {name: math.exp(float(each.loss or 0.0) / 0.05) for name, each in told.items()}
    mixed = {}
    for c in models:
        w = math.tanh(0.7 / (exps[c] / sum(exps.values())) ** (told[c].round - 1 + 1))
        above, below = models[c]["t"].double(), 1.0
        for j in models:
            if j != c:
                mine, other = models[c]["t"].double().flatten(), models[j]["t"].double().flatten()
                s = (float(mine @ other / mine.norm() / other.norm()) + 1) / 2
                above, below = above + s * w * models[j]["t"].double(), below + s * w
        mixed[c] = (above / below).float()
    return mixed


def test_late_rounds_and_far_losses_are_numbers() -> None:
    taken = takes([0.0, 5.0, 100.0], 999, alpha=0.7, beta=0.01)
    assert taken.isfinite().all()
    assert taken[:2].tolist() == [1.0, 1.0]
    assert taken[2] == pytest.approx(math.tanh(0.7)), "whose l is one"


def test_the_other_mixings() -> None:
    models = {"x": model(1.0, 0.0, 0.0), "y": model(0.0, 4.0, 8.0)}
    told = {"x": given(0.3, weight=3.0), "y": given(None, weight=1.0)}
    assert mixture(models, told, config("local"))["y"]["a"].tolist() == [0.0, 4.0]
    assert mixture(models, told, config("mean"))["x"]["a"].tolist() == [0.5, 2.0]
    averaged = mixture(models, told, config("fedavg"))
    assert averaged["x"]["b"].tolist() == averaged["y"]["b"].tolist() == [[2.0]]
    assert averaged["x"]["a"].tolist() == [0.75, 1.0]


def test_pooling_mixes_before_the_step_what_models_and_users_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights 3 and 1 of models 1 and 5 with means 2 and -2: both are 2 with the mean 1, and the step subtracts it."""
    monkeypatch.setattr(FederatedStrategy, "next", stepped)
    strategy = FellRecStrategy.__new__(FellRecStrategy)
    strategy.config = config("pooled")
    states = {name: State({"t": torch.tensor([value])}) for name, value in (("x", 1.0), ("y", 5.0), ("z", 9.0))}
    told = {
        "x": Given(1, {"t": torch.tensor([2.0])}, 0.3, 3.0),
        "y": Given(1, {"t": torch.tensor([-2.0])}, 0.3, 1.0),
        "z": Given(1, None, None, 0.0),
    }
    found = strategy.next(states, told)  # type: ignore[arg-type]
    assert {name: state.trainable["t"].item() for name, state in found.items()} == {"x": 1.0, "y": 1.0, "z": 9.0}
    alone = strategy.next(states, {**told, "y": told["z"]})  # type: ignore[arg-type]
    assert {name: state.trainable["t"].item() for name, state in alone.items()} == {"x": -1.0, "y": 5.0, "z": 9.0}


@dataclass(frozen=True)
class State:
    """What a strategy sees of where a group stands."""

    trainable: Tensors


def stepped(self: FederatedStrategy, states: dict[str, State], given: dict[str, Given]) -> dict[str, State]:
    """A step of plain descent by what a group's users gave."""
    return {
        name: State({"t": state.trainable["t"] - mean["t"]}) if (mean := given[name].mean) is not None else state
        for name, state in states.items()
    }


def test_it_needs_groups() -> None:
    assert compose(["strategy=fellrec"], base=None).grouping.name == "key"
    with pytest.raises(ConfigError, match="mixes the models of groups, and grouping=one has none"):
        compose(["strategy=fellrec", "grouping=one"], base=None)


def test_a_group_whose_loss_cannot_be_believed_takes_its_own_step_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One site's reply must not end a run in which the others are mixed."""
    strategy = object.__new__(FellRecStrategy)
    strategy.config = config()
    monkeypatch.setattr(FederatedStrategy, "next", lambda _, states, __: states)
    states = {
        name: State(model(*numbers)) for name, numbers in zip("abc", [(1, 0, 0), (0, 9, 0), (0, 0, 1)], strict=True)
    }
    told = {"a": given(0.5), "b": given(None), "c": given(0.7)}
    after = strategy.next(states, told)  # type: ignore[arg-type]
    assert after["b"] is states["b"]
    expected = mixture({name: states[name].trainable for name in "ac"}, told, config())
    assert torch.equal(after["a"].trainable["a"], expected["a"]["a"])
