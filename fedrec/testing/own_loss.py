"""The contract of backbones with a loss of their own, beside that of all."""

from __future__ import annotations

import pytest
import torch
from typing_extensions import override

from fedrec.backbones.base import Backbone, ScoreContext
from fedrec.testing.backbone import (
    HISTORY,
    KEYS,
    BackboneContract,
    frozen_tensors,
    histories,
    items,
    of_user,
    read,
    shared_tensors,
)

AHEAD = torch.tensor([[4, 1], [0, 0], [1, 2], [5, 3], [3, 3]])
MASK = torch.tensor([[True, True], [True, False], [False, True], [True, True], [False, False]])


class OwnLossContract(BackboneContract):
    """What engines take for granted of `Backbone.losses`; scores are for rankings, and train nothing."""

    @override
    def test_the_advice_is_one_that_a_recipe_can_follow(self, backbone: Backbone) -> None:
        assert backbone.own_loss
        assert backbone.advice.loss == "own"
        assert backbone.advice.lr > 0

    @override
    @pytest.mark.parametrize("training", [True, False])
    def test_the_gradient_reaches_items_and_every_tensor_of_the_user(self, backbone: Backbone, training: bool) -> None:
        vectors = items(len(KEYS)).requires_grad_()
        states = read(backbone, shared_tensors(backbone))
        backbone.score(shared_tensors(backbone), states, vectors, ScoreContext(training=training)).sum().backward()  # type: ignore[no-untyped-call]
        assert vectors.grad is not None
        assert vectors.grad.any(-1).all()

    @override
    def test_a_history_matters_and_its_gradient_reaches_its_items_alone(self, backbone: Backbone) -> None:
        """There is none: what is read of an item is not its vector."""
        shared, frozen, ahead, mask = shared_tensors(backbone), frozen_tensors(backbone), AHEAD[0], MASK[0]
        first, second = (backbone.losses(shared, {}, frozen, histories(items(), user), ahead, mask) for user in (0, 1))
        assert not HISTORY[0].equal(HISTORY[1])
        assert (first != second).all()

    def test_losses_are_each_users_own_and_move_all_that_is_shared(self, backbone: Backbone) -> None:
        """Also with private copies of what is shared; what is masked costs nothing, whatever item it is."""
        copies = [shared_tensors(backbone, user) for user in range(len(KEYS))]
        stacked = {name: torch.stack([copy[name] for copy in copies]).requires_grad_() for name in backbone.shared}
        private, frozen, vectors = backbone.init_private(0, KEYS), frozen_tensors(backbone), items()
        together = backbone.losses(stacked, private, frozen, histories(vectors), AHEAD, MASK)
        assert together.shape == AHEAD.shape
        assert torch.equal(together != 0, MASK)
        for user in range(len(KEYS)):
            of_one = histories(vectors, user)
            alone = backbone.losses(copies[user], of_user(private, user), frozen, of_one, AHEAD[user], MASK[user])
            torch.testing.assert_close(together[user], alone, rtol=1e-5, atol=1e-6)
        together[:3].sum().backward()  # type: ignore[no-untyped-call]
        for name, tensor in stacked.items():
            assert tensor.grad is not None, f"no gradient reaches {name}"
            assert [bool(gradient.any()) for gradient in tensor.grad] == [True, True, True, False, False], name

    def test_losses_change_nothing_that_is_given(self, backbone: Backbone) -> None:
        shared = shared_tensors(backbone)
        before = {name: tensor.clone() for name, tensor in shared.items()}
        state = torch.get_rng_state()
        backbone.losses(shared, {}, frozen_tensors(backbone), histories(items()), AHEAD, MASK)
        assert torch.equal(torch.get_rng_state(), state), "the global generator was used"
        assert all(torch.equal(before[name], tensor) for name, tensor in shared.items())
