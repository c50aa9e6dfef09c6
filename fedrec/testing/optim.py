"""The contract of recipes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fedrec.core.rng import generator
from fedrec.core.tensors import Tensors, content_digest, spec_digest, spec_of
from fedrec.optim.base import Adam, LocalStep, Recipe, Sgd


def scores(*leading: int, pairs: int = 6, q: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Scores of positives [..., pairs] and of negatives [..., pairs, q]."""
    rng = generator(seed, "scores")
    drawn = torch.randn(*leading, pairs, 1 + q, generator=rng, dtype=torch.float64)
    return drawn[..., 0], drawn[..., 1:]


def model() -> Tensors:
    """A small model."""
    rng = generator(0, "model")
    return {"embedding.A": torch.randn(5, 2, generator=rng), "embedding.B": torch.randn(3, 2, generator=rng)}


class RecipeContract:
    """What engines and server take for granted of a recipe."""

    @pytest.fixture
    def recipe(self) -> Recipe:
        """The member that is held to the contract."""
        raise NotImplementedError("override this fixture: it gives the member")

    def test_steps_are_declared(self, recipe: Recipe) -> None:
        steps = recipe.local_steps()
        assert steps, "a user who is chosen does something"
        assert recipe.negatives >= 1
        for step in [*steps, *recipe.solve_steps()]:
            assert isinstance(step, LocalStep)
            assert step.private or step.shared, "a step that moves nothing"
            assert isinstance(step.optimiser, Adam | Sgd)
            assert step.optimiser.lr > 0
        assert any(step.shared for step in steps), "or no user would send anything"
        for step in steps:
            if step.shared:
                assert step.optimiser.weight_decay == 0.0, "it would move rows that a user never reads"
        assert list(recipe.local_steps()) == list(steps), "a declaration, not an iterator that is used up"

    def test_solving_never_moves_shared_tensors(self, recipe: Recipe) -> None:
        assert all(step.private and not step.shared for step in recipe.solve_steps())

    def test_padding_changes_nothing(self, recipe: Recipe) -> None:
        """Whatever stands in the padding, the loss and every gradient are those of the real pairs."""
        positive, negative = scores()
        mask = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0, 0.0], dtype=torch.float64)
        real = mask.bool()
        alone = [tensor[real].clone().requires_grad_() for tensor in (positive, negative)]
        expected = recipe.loss(alone[0], alone[1], mask[real])
        grads = torch.autograd.grad(expected, alone)
        for filling in (0.0, 30.0, -30.0):
            padded = [tensor.clone() for tensor in (positive, negative)]
            for tensor in padded:
                tensor[~real] = filling
                tensor.requires_grad_()
            loss = recipe.loss(padded[0], padded[1], mask)
            torch.testing.assert_close(loss, expected)
            for grad, true_grad in zip(torch.autograd.grad(loss, padded), grads, strict=True):
                torch.testing.assert_close(grad[real], true_grad)
                assert not grad[~real].any()

    def test_a_cohorts_losses_are_its_users_losses(self, recipe: Recipe) -> None:
        positive, negative = scores(4)
        mask = torch.ones(4, 6, dtype=torch.float64)
        mask[1, 3:] = 0.0
        together = recipe.loss(positive, negative, mask)
        assert together.shape == (4,)
        for user in range(4):
            torch.testing.assert_close(together[user], recipe.loss(positive[user], negative[user], mask[user]))

    def test_the_loss_falls_when_positives_rise_over_negatives(self, recipe: Recipe) -> None:
        positive, negative = scores()
        mask = torch.ones(6, dtype=torch.float64)
        values = [float(recipe.loss(positive + shift, negative - shift, mask)) for shift in (-3.0, 0.0, 3.0, 60.0, 1e4)]
        assert values == sorted(values, reverse=True)
        assert all(math.isfinite(value) for value in values)
        assert math.isfinite(float(recipe.loss(positive - 1e4, negative + 1e4, mask)))

    def test_the_server_moves_along_the_mean_and_changes_nothing_given(self, recipe: Recipe) -> None:
        before, mean = model(), {name: torch.full_like(tensor, 0.5) for name, tensor in model().items()}
        state: Tensors = {}
        for _ in range(3):
            digests = content_digest(before), content_digest(mean), content_digest(state)
            after, next_state = recipe.server_update(before, mean, state)
            assert (content_digest(before), content_digest(mean), content_digest(state)) == digests
            assert spec_digest(spec_of(after)) == spec_digest(spec_of(before))
            assert all(bool(((after[name] - before[name]) * mean[name] >= 0).all()) for name in before)
            assert any(not torch.equal(after[name], before[name]) for name in before)
            spec_of(next_state)  # of types that a checkpoint can hold
            before, state = after, next_state

    def test_no_news_moves_nothing(self, recipe: Recipe) -> None:
        zero = {name: torch.zeros_like(tensor) for name, tensor in model().items()}
        after, _ = recipe.server_update(model(), zero, {})
        for name, tensor in model().items():
            torch.testing.assert_close(after[name], tensor)
