"""The contract of recipes, over every member of the family by itself, and the local optimisers against torch's own."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedrec.backbones.base import Advice
from fedrec.config.compose import compose
from fedrec.config.describe import load_member
from fedrec.config.validate import member_config
from fedrec.core.registry import optims
from fedrec.core.rng import generator
from fedrec.core.tensors import Tensors
from fedrec.optim.base import Adam, LocalOptimiser, LocalStep, Recipe, Sgd
from fedrec.optim.fast import FastRecipe
from fedrec.optim.local import LocalState
from fedrec.optim.losses import LOSSES, bce, bpr, recency, softmax
from fedrec.optim.paper import PaperRecipe
from fedrec.optim.server import ServerOptimiser, server_step
from fedrec.testing.optim import RecipeContract, model, scores
from server_app.setup import make_setup

ADVICE = Advice(loss="bce", lr=0.003)


class TestEveryRecipe(RecipeContract):
    @pytest.fixture(params=optims.names())
    def recipe(self, request: pytest.FixtureRequest) -> Recipe:
        made: Recipe = optims.get(request.param)(load_member("optim", request.param), ADVICE)
        return made


# The paper's recipe --------------------------------------------------------------------------------------------------


def paper(**values: Any) -> PaperRecipe:
    return PaperRecipe(load_member("optim", "paper", **values), ADVICE)


def test_paper_is_federated_averaging() -> None:
    mean = {name: torch.full_like(tensor, 0.25) for name, tensor in model().items()}
    after, state = paper().server_update(model(), mean, {})
    assert state == {}
    assert all(torch.equal(after[name], tensor + 0.25) for name, tensor in model().items())


def test_paper_steps_follow_the_configuration() -> None:
    recipe = paper(local_epochs=3, solve_epochs=0, lr=0.5, negatives=4)
    assert list(recipe.local_steps()) == [LocalStep(private=True, shared=True, optimiser=Adam(0.5))] * 3
    assert list(recipe.solve_steps()) == []
    assert recipe.negatives == 4


def test_fast_solves_with_a_rate_of_its_own_before_a_ranking() -> None:
    recipe = FastRecipe(
        load_member("optim", "fast", private_steps=2, private_lr=0.5, solve_steps=3, solve_lr=0.25), ADVICE
    )
    own = [LocalStep(private=True, shared=False, optimiser=Adam(0.5))] * 2
    assert list(recipe.local_steps()) == [*own, LocalStep(private=False, shared=True, optimiser=Sgd(1.0))]
    assert list(recipe.solve_steps()) == [LocalStep(private=True, shared=False, optimiser=Adam(0.25))] * 3


@pytest.mark.parametrize(("kind", "optimiser"), [("adam", Adam), ("sgd", Sgd)])
def test_fast_fits_what_is_private_with_the_optimiser_of_its_choice(kind: str, optimiser: type[Adam | Sgd]) -> None:
    settings = {"private_optimiser": kind, "private_lr": 0.5, "solve_lr": 0.25, "private_decay": 0.125}
    recipe = FastRecipe(load_member("optim", "fast", **settings), ADVICE)
    assert recipe.local_steps()[0].optimiser == optimiser(0.5, weight_decay=0.125)
    assert recipe.solve_steps()[0].optimiser == optimiser(0.25, weight_decay=0.125)


def test_fast_weighs_recent_interactions_where_it_is_told_to() -> None:
    recipe = FastRecipe(
        load_member("optim", "fast", private_steps=1, solve_steps=1, half_life=3.0, shared_half_life=20.0), ADVICE
    )
    assert [step.half_life for step in recipe.local_steps()] == [3.0, 20.0]
    assert [step.half_life for step in recipe.solve_steps()] == [3.0]


def test_recent_interactions_weigh_by_their_half_life() -> None:
    weights = recency(torch.tensor([0, 1, 2, 4, 400]), 2.0)
    assert weights.tolist() == pytest.approx([1, 0.5**0.5, 0.5, 0.25, 1e-6])


@pytest.mark.parametrize("kind", LOSSES)
def test_a_weight_of_two_is_a_pair_that_stands_twice(kind: str) -> None:
    rng = generator(0, "scores")
    positive, negative = torch.randn(3, generator=rng), torch.randn(3, 5, generator=rng)
    twice = torch.tensor([0, 1, 1, 2])
    weighted = LOSSES[kind](positive, negative, torch.tensor([1.0, 2.0, 1.0]))
    torch.testing.assert_close(weighted, LOSSES[kind](positive[twice], negative[twice], torch.ones(4)))


# The server's optimisers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("halved_after", [None, 3.0])
@pytest.mark.parametrize("kind", ["sgd", "adagrad", "adam"])
def test_the_server_steps_as_the_frameworks_own_optimisers_do(kind: Any, halved_after: float | None) -> None:
    rule = ServerOptimiser(kind, lr=0.1, halved_after=halved_after, beta1=0.9, beta2=0.99, eps=1e-6)
    mine, state = {"t": torch.randn(4, 3, generator=generator(0), dtype=torch.float64)}, dict[str, Tensor]()
    theirs = mine["t"].clone().requires_grad_()
    other: torch.optim.Optimizer = {
        "sgd": lambda: torch.optim.SGD([theirs], rule.lr, momentum=rule.beta1),
        "adagrad": lambda: torch.optim.Adagrad([theirs], rule.lr, eps=rule.eps),
        "adam": lambda: torch.optim.Adam([theirs], rule.lr, (rule.beta1, rule.beta2), rule.eps),
    }[kind]()
    falling = torch.optim.lr_scheduler.LambdaLR(other, lambda step: 1 / (1 + step / (halved_after or math.inf)))
    for step in range(5):
        delta = torch.randn(4, 3, generator=generator(step, "delta"), dtype=torch.float64)
        mine, state = server_step(rule, mine, {"t": delta}, state)
        theirs.grad = -delta
        other.step()
        falling.step()
        torch.testing.assert_close(mine["t"], theirs.detach(), atol=1e-12, rtol=1e-12)


def test_the_rate_rises_and_then_falls_along_half_a_cosine() -> None:
    rule = ServerOptimiser("sgd", 0.2, None, 0.0, 0.99, 1e-8, warm_up=4, cosine=10, cosine_floor=0.1)
    state: Tensors = {}
    for taken in range(13):
        before = torch.zeros(1)
        after, state = server_step(rule, {"t": before}, {"t": torch.ones(1)}, state)
        falling = 0.1 + 0.9 * (1 + math.cos(math.pi * min(taken, 10) / 10)) / 2
        assert float(after["t"]) == pytest.approx(0.2 * min(1, (taken + 1) / 4) * falling)
    assert rule.rate(12) == pytest.approx(0.02)
    assert ServerOptimiser("sgd", 0.2, 5.0, 0.0, 0.99, 1e-8, warm_up=10).rate(4) == pytest.approx(0.5 * 0.2 / 1.8)


def test_a_client_is_not_told_of_what_is_switched_off() -> None:
    """So that a run without it moves as many bytes as before there was any."""
    plain, full = load_member("optim", "fast"), load_member("optim", "fast", window=51)
    added = {"window", "window_placement"}
    assert not added & plain.told().keys()
    assert not {"warm_up", "cosine", "cosine_floor"} & plain.told()["server"].keys()
    assert added <= full.told().keys()
    for config in (plain, full):
        assert member_config("optim", config.told()) == config
    setup = make_setup(compose(["optim=fast"], base=None), 10, "catalogue", "eligible", None)
    assert setup.optim == plain.told()


def test_yogi_by_hand() -> None:
    """Algorithm 2 of Reddi et al. (ICLR 2021) for one number, with Adam's correction of the start."""
    rule = ServerOptimiser("yogi", lr=0.1, halved_after=None, beta1=0.9, beta2=0.99, eps=1e-3)
    x, m, v = 1.0, 0.0, 0.0
    mine, state = {"t": torch.tensor([x], dtype=torch.float64)}, dict[str, Tensor]()
    for t, g in enumerate([0.5, -2.0, 0.1, 0.1], start=1):
        mine, state = server_step(rule, mine, {"t": torch.tensor([-g], dtype=torch.float64)}, state)
        m = 0.9 * m + 0.1 * g
        v = v - 0.01 * g * g * math.copysign(1, v - g * g)
        x -= 0.1 * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.99**t)) + 1e-3)
        assert float(mine["t"]) == pytest.approx(x, abs=1e-12)


@pytest.mark.parametrize("loss", ["bpr", "bce"])
def test_paper_takes_loss_and_rate_from_the_backbone_unless_told(loss: Any) -> None:
    positive, negative = scores()
    mask = torch.ones(6, dtype=torch.float64)
    follows = PaperRecipe(load_member("optim", "paper"), Advice(loss, 0.25))
    assert follows.local_steps()[0].optimiser == follows.solve_steps()[0].optimiser == Adam(0.25)
    assert torch.equal(follows.loss(positive, negative, mask), LOSSES[loss](positive, negative, mask))
    told = PaperRecipe(load_member("optim", "paper", loss=loss, lr=0.5), ADVICE)
    assert told.local_steps()[0].optimiser == Adam(0.5)
    assert torch.equal(told.loss(positive, negative, mask), LOSSES[loss](positive, negative, mask))


# Losses --------------------------------------------------------------------------------------------------------------


def test_losses_by_hand() -> None:
    positive, negative = torch.tensor([1.0, -2.0]), torch.tensor([[0.0, 3.0], [1.0, -1.0]])
    mask = torch.tensor([1.0, 1.0])

    def log_sigmoid(value: float) -> float:
        return -math.log1p(math.exp(-value))

    pairs = [(1.0, [0.0, 3.0]), (-2.0, [1.0, -1.0])]
    by_hand = -sum(log_sigmoid(p - n) for p, row in pairs for n in row) / 4
    assert float(bpr(positive, negative, mask)) == pytest.approx(by_hand)
    by_hand = -sum(log_sigmoid(p) + sum(log_sigmoid(-n) for n in row) for p, row in pairs) / 6
    assert float(bce(positive, negative, mask)) == pytest.approx(by_hand)
    by_hand = sum(-p + math.log(math.exp(p) + sum(map(math.exp, row))) for p, row in pairs) / 2
    assert float(softmax(positive, negative, mask)) == pytest.approx(by_hand)
    assert float(bpr(positive, negative, torch.tensor([1.0, 0.0]))) == pytest.approx(
        -(log_sigmoid(1.0) + log_sigmoid(-2.0)) / 2
    )


@pytest.mark.parametrize("name", LOSSES)
def test_one_copy_of_a_pair_more_in_every_user_changes_no_loss(name: str) -> None:
    positive, negative = scores()
    mask = torch.ones(6, dtype=torch.float64)
    twice = LOSSES[name](positive.repeat(2), negative.repeat(2, 1), mask.repeat(2))
    torch.testing.assert_close(twice, LOSSES[name](positive, negative, mask))


# Local optimisers ----------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    rule=st.sampled_from([Sgd(0.1), Sgd(0.1, 0.3), Adam(0.01), Adam(0.5, 0.5, 0.9, 1e-3), Adam(0.1, weight_decay=0.3)]),
    steps=st.integers(1, 6),
    seed=st.integers(0, 1000),
)
def test_equals_the_frameworks_own(rule: LocalOptimiser, steps: int, seed: int) -> None:
    rng = generator(seed, "optimiser")
    mine = torch.randn(4, 3, generator=rng, dtype=torch.float64)
    theirs = mine.clone().requires_grad_()
    state = LocalState(rule, mine)
    if isinstance(rule, Adam):
        other: torch.optim.Optimizer = torch.optim.Adam(
            [theirs], rule.lr, (rule.beta1, rule.beta2), rule.eps, rule.weight_decay
        )
    else:
        other = torch.optim.SGD([theirs], rule.lr, weight_decay=rule.weight_decay)
    for _ in range(steps):
        gradient = torch.randn(4, 3, generator=rng, dtype=torch.float64)
        kept = gradient.clone()
        state.step(mine, gradient)
        assert torch.equal(gradient, kept)
        theirs.grad = gradient
        other.step()
        torch.testing.assert_close(mine, theirs.detach(), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("rule", [Sgd(0.1), Adam(0.01)], ids=["sgd", "adam"])
def test_a_row_without_gradient_does_not_move(rule: LocalOptimiser) -> None:
    """The reason why an engine may leave out the rows that a user never touches."""
    tensor = torch.ones(2, 3)
    state = LocalState(rule, tensor)
    for _ in range(3):
        state.step(tensor, torch.tensor([[0.0, 0.0, 0.0], [1.0, -1.0, 0.0]]))
    assert torch.equal(tensor[0], torch.ones(3))
    assert tensor[1, 2] == 1.0
    assert tensor[1, 0] < 1.0 < tensor[1, 1]
