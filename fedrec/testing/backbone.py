"""The contract of backbones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fedrec.backbones.base import Advice, Backbone, ItemSequence, ScoreContext
from fedrec.backbones.history import PlainHistory
from fedrec.core.rng import generator
from fedrec.core.tensors import Tensors, content_digest, matches
from fedrec.optim.losses import LOSSES

DIM, ITEMS = 8, 6
"""Numbers of a vector, for which the member has to be; and how many items are scored."""

KEYS = np.array([3, 2**64 - 1, 0, 17, 2**40], dtype=np.uint64)
RANKING = ScoreContext(training=False)
HISTORY = torch.tensor([[0, 3, 5], [1, 2, 3], [5, 4, 0], [2, 2, 2], [1, 0, 4]])
COUNTS = torch.tensor([-3.0, 0.0, 1.0, 2.5, 7.0, 100.0])
TEXTS = ("a red lamp", "a blue lamp", "", "screws", "a box of screws", "red paint")


def items(*leading: int) -> Tensor:
    """Vectors [..., items, dim]."""
    return torch.randn(*leading, ITEMS, DIM, generator=generator(0, "items", *leading))


def shared_tensors(backbone: Backbone, seed: int = 0) -> Tensors:
    """Shared tensors as they may be after some training: no longer at a start that may be zero."""
    rng = generator(seed, "shared")
    made = backbone.init_shared(rng)
    return {name: tensor + 0.1 * torch.randn(tensor.shape, generator=rng) for name, tensor in made.items()}


def of_user(tensors: Tensors, user: int) -> Tensors:
    """Those of one of several users."""
    return {name: tensor[user] for name, tensor in tensors.items()}


def frozen_tensors(backbone: Backbone) -> Tensors:
    """Frozen tensors for some counts and texts."""
    return backbone.init_frozen(COUNTS) | backbone.init_texts(TEXTS)


def histories(vectors: Tensor, user: int | slice = slice(None)) -> PlainHistory:
    """Histories of one user or all, over a table of item vectors."""
    return PlainHistory(HISTORY[user], vectors[HISTORY[user]])


def states(
    backbone: Backbone, shared: Tensors, private: Tensors, vectors: Tensor, mask: Tensor | None = None
) -> Tensors:
    """The states [..., n + 1, ...] of a causal backbone for item vectors [..., n, dim]."""
    shape = vectors.shape[:-1]
    mask = torch.ones(shape, dtype=torch.bool) if mask is None else mask
    sequence = ItemSequence(torch.zeros(shape, dtype=torch.int64), vectors, mask)
    return backbone.states(shared, private, frozen_tensors(backbone), sequence, RANKING)


def read(backbone: Backbone, shared: Tensors, private: Tensors | None = None, vectors: Tensor | None = None) -> Tensors:
    """What `score` reads of the users `KEYS`: private tensors, or a state after some items."""
    private = backbone.init_private(0, KEYS) if private is None else private
    if not made_of_history(backbone):
        return private
    vectors = items(len(KEYS), 1).squeeze(1) if vectors is None else vectors
    if not backbone.causal:
        return backbone.user(shared, private, frozen_tensors(backbone), PlainHistory(HISTORY, vectors[:, :3]))
    return {name: tensor[:, -1] for name, tensor in states(backbone, shared, private, vectors).items()}


def made_of_history(backbone: Backbone) -> bool:
    """Whether what `score` reads of a user is made of items, and of nothing that the user has beside them."""
    return backbone.causal or not backbone.private


class BackboneContract:
    """What models, engines and rankings take for granted of a backbone."""

    @pytest.fixture
    def backbone(self) -> Backbone:
        """The member that is held to the contract, for vectors of `DIM` numbers."""
        raise NotImplementedError("override this fixture: it gives the member")

    def test_specifications_and_initial_tensors_agree(self, backbone: Backbone) -> None:
        assert not backbone.shared.keys() & backbone.private.keys()
        shared = shared_tensors(backbone)
        assert shared.keys() == backbone.shared.keys()
        for name, tensor in shared.items():
            assert matches(backbone.shared[name], tensor)
            assert tensor.isfinite().all()
        private = backbone.init_private(0, KEYS)
        assert private.keys() == backbone.private.keys()
        for name, tensor in private.items():
            assert len(tensor) == len(KEYS)
            assert matches(backbone.private[name], tensor[0])
            assert tensor.isfinite().all()

    def test_no_users_have_no_private_tensors(self, backbone: Backbone) -> None:
        for name, tensor in backbone.init_private(0, KEYS[:0]).items():
            assert tuple(tensor.shape) == (0, *backbone.private[name].shape)

    def test_a_users_start_is_a_function_of_seed_and_key_alone(self, backbone: Backbone) -> None:
        before = torch.get_rng_state()
        together = backbone.init_private(7, KEYS)
        order = [4, 0, 2]
        beside_others = backbone.init_private(7, KEYS[order])
        for place, user in enumerate(order):
            alone = backbone.init_private(7, KEYS[user : user + 1])
            for name, tensor in together.items():
                assert torch.equal(alone[name][0], tensor[user])
                assert torch.equal(beside_others[name][place], tensor[user])
        assert torch.equal(torch.get_rng_state(), before), "the global generator was used"

    def test_seeds_start_apart_and_users_do_or_all_start_alike_as_declared(self, backbone: Backbone) -> None:
        """Not all tensors are drawn: one that starts constant, such as a bias, is the same for all users and seeds."""
        first, other_seed = backbone.init_private(1, KEYS), backbone.init_private(2, KEYS)
        drawn = [name for name, tensor in first.items() if len(set(tensor[0].flatten().tolist())) > 1]
        assert drawn or not backbone.private, "no private tensor is drawn"
        for name in drawn:
            different = len({tuple(row.flatten().tolist()) for row in first[name]})
            assert different == (1 if backbone.common_start else len(KEYS))
            assert not torch.equal(first[name], other_seed[name])

    def test_users_who_start_alike_do_not_share_memory(self, backbone: Backbone) -> None:
        for tensor in backbone.init_private(0, KEYS).values():
            before = tensor[1].clone()
            tensor[0] += 1
            assert torch.equal(tensor[1], before)

    def test_the_advice_is_one_that_a_recipe_can_follow(self, backbone: Backbone) -> None:
        assert isinstance(backbone.advice, Advice)
        assert backbone.advice.loss in LOSSES
        assert backbone.advice.lr > 0
        assert backbone.numbers_per_score >= 1

    def test_the_shared_start_is_a_function_of_the_generator(self, backbone: Backbone) -> None:
        before = torch.get_rng_state()
        first, second = shared_tensors(backbone, 1), shared_tensors(backbone, 1)
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert torch.equal(torch.get_rng_state(), before), "the global generator was used"

    def test_a_direction_gives_the_scores(self, backbone: Backbone) -> None:
        shared, vectors = shared_tensors(backbone), items(len(KEYS))
        private = read(backbone, shared)
        direction = backbone.direction(private)
        if direction is None:
            return
        for context in (RANKING, ScoreContext(training=True)):
            scores = backbone.score(shared, private, vectors, context)
            torch.testing.assert_close((vectors @ direction.unsqueeze(-1)).squeeze(-1), scores)

    def test_a_cohort_is_scored_as_its_users_are(self, backbone: Backbone) -> None:
        shared = shared_tensors(backbone)
        private = read(backbone, shared)
        vectors = items(len(KEYS))
        together = backbone.score(shared, private, vectors, RANKING)
        assert together.shape == (len(KEYS), ITEMS)
        alone = [backbone.score(shared, of_user(private, user), vectors[user], RANKING) for user in range(len(KEYS))]
        torch.testing.assert_close(together, torch.stack(alone), rtol=1e-5, atol=1e-6)

    def test_items_without_a_user_dimension_serve_a_cohort(self, backbone: Backbone) -> None:
        """As in ranking: all users against the same items, nothing copied for each of them."""
        shared, vectors = shared_tensors(backbone), items()
        private = read(backbone, shared)
        together = backbone.score(shared, private, vectors, RANKING)
        assert together.shape == (len(KEYS), ITEMS)
        alone = [backbone.score(shared, of_user(private, user), vectors, RANKING) for user in range(len(KEYS))]
        torch.testing.assert_close(together, torch.stack(alone), rtol=1e-5, atol=1e-6)

    def test_two_leading_dimensions_are_as_good_as_one(self, backbone: Backbone) -> None:
        users = 4
        shared = shared_tensors(backbone)
        private = {name: tensor[:users] for name, tensor in read(backbone, shared).items()}
        vectors = items(users)
        once = backbone.score(shared, private, vectors, RANKING)
        folded = {name: tensor.reshape(2, 2, *tensor.shape[1:]) for name, tensor in private.items()}
        twice = backbone.score(shared, folded, vectors.reshape(2, 2, *vectors.shape[1:]), RANKING)
        torch.testing.assert_close(twice.flatten(0, 1), once, rtol=1e-5, atol=1e-6)

    def test_contexts_of_a_user_may_be_set_against_the_same_items(self, backbone: Backbone) -> None:
        """With one copy of what is shared for all of a user's."""
        if backbone.causal:
            return
        copies = [shared_tensors(backbone, user) for user in range(2)]
        stacked = {name: torch.stack([copy[name] for copy in copies]).unsqueeze(1) for name in backbone.shared}
        four = {name: tensor[:4] for name, tensor in read(backbone, copies[0]).items()}
        private = {name: tensor.reshape(2, 2, *tensor.shape[1:]) for name, tensor in four.items()}
        vectors = items(2)
        together = backbone.score(stacked, private, vectors.unsqueeze(1), RANKING)
        assert together.shape == (2, 2, ITEMS)
        for user in range(2):
            for context in range(2):
                own = of_user(of_user(private, user), context)
                alone = backbone.score(copies[user], own, vectors[user], RANKING)
                torch.testing.assert_close(together[user, context], alone, rtol=1e-5, atol=1e-6)

    def test_nothing_that_is_given_is_changed(self, backbone: Backbone) -> None:
        shared, vectors = shared_tensors(backbone), items(len(KEYS))
        private = read(backbone, shared)
        before = content_digest({**private, **shared, "item vectors": vectors})
        backbone.score(shared, private, vectors, RANKING)
        assert content_digest({**private, **shared, "item vectors": vectors}) == before

    def test_users_may_have_private_copies_of_the_shared_tensors(self, backbone: Backbone) -> None:
        private = read(backbone, shared_tensors(backbone))
        copies = [shared_tensors(backbone, user) for user in range(len(KEYS))]
        stacked = {name: torch.stack([copy[name] for copy in copies]) for name in backbone.shared}
        vectors = items(len(KEYS))
        together = backbone.score(stacked, private, vectors, RANKING)
        alone = [
            backbone.score(copies[user], of_user(private, user), vectors[user], RANKING) for user in range(len(KEYS))
        ]
        torch.testing.assert_close(together, torch.stack(alone), rtol=1e-5, atol=1e-6)

    def test_an_items_score_does_not_depend_on_the_items_beside_it(self, backbone: Backbone) -> None:
        shared = shared_tensors(backbone)
        private = of_user(read(backbone, shared), 0)
        vectors = items()
        scores = backbone.score(shared, private, vectors, RANKING)
        order = torch.randperm(ITEMS, generator=generator(3))
        torch.testing.assert_close(backbone.score(shared, private, vectors[order], RANKING), scores[order])
        torch.testing.assert_close(backbone.score(shared, private, vectors[:1], RANKING), scores[:1])
        assert backbone.score(shared, private, vectors[:0], RANKING).shape == (0,)

    @pytest.mark.parametrize("training", [True, False])
    def test_the_gradient_reaches_items_and_every_tensor_of_the_user(self, backbone: Backbone, training: bool) -> None:
        private = {name: tensor.requires_grad_() for name, tensor in backbone.init_private(0, KEYS).items()}
        shared = {name: tensor.requires_grad_() for name, tensor in shared_tensors(backbone).items()}
        vectors = items(len(KEYS)).requires_grad_()
        states = read(backbone, shared, private, vectors)
        scores = backbone.score(shared, states, vectors, ScoreContext(training=training))
        (scores * torch.randn(scores.shape, generator=generator(4))).sum().backward()  # type: ignore[no-untyped-call]
        for name, tensor in {**private, **shared, "item vectors": vectors}.items():
            assert tensor.grad is not None, f"no gradient reaches {name}"
            assert tensor.grad.isfinite().all()
            assert tensor.grad.any(), f"the gradient of {name} is zero"

    def test_one_users_score_moves_nothing_of_another(self, backbone: Backbone) -> None:
        private = {name: tensor.requires_grad_() for name, tensor in backbone.init_private(0, KEYS).items()}
        vectors = items(len(KEYS)).requires_grad_()
        states = read(backbone, shared_tensors(backbone), private, vectors)
        scores = backbone.score(shared_tensors(backbone), states, vectors, RANKING)
        scores[1].sum().backward()  # type: ignore[no-untyped-call]
        for tensor in (*private.values(), vectors):
            assert tensor.grad is not None
            assert not tensor.grad[[0, 2, 3, 4]].any()

    def test_frozen_tensors_are_as_specified_for_any_counts(self, backbone: Backbone) -> None:
        spec, made = backbone.frozen(len(COUNTS)), frozen_tensors(backbone)
        assert made.keys() == spec.keys()
        assert not spec.keys() & (backbone.shared.keys() | backbone.private.keys())
        for name, tensor in made.items():
            assert matches(spec[name], tensor)
            assert tensor.isfinite().all()
        assert made or backbone.item_counting is None, "what is counted is for the frozen tensors"

    def test_a_cohort_reads_its_histories_as_its_users_do(self, backbone: Backbone) -> None:
        if not backbone.reads_history:
            return
        shared, private, frozen, vectors = (
            shared_tensors(backbone),
            backbone.init_private(0, KEYS),
            frozen_tensors(backbone),
            items(),
        )
        together = backbone.user(shared, private, frozen, histories(vectors))
        for user in range(len(KEYS)):
            alone = backbone.user(shared, of_user(private, user), frozen, histories(vectors, user))
            torch.testing.assert_close(of_user(together, user), alone, rtol=1e-5, atol=1e-6)
        scores = backbone.score(shared, together, items(len(KEYS)), RANKING)
        assert scores.shape == (len(KEYS), ITEMS)

    def test_a_history_matters_and_its_gradient_reaches_its_items_alone(self, backbone: Backbone) -> None:
        if not backbone.reads_history:
            return
        vectors = items().requires_grad_()
        private = {name: tensor.requires_grad_() for name, tensor in of_user(backbone.init_private(0, KEYS), 0).items()}
        user = backbone.user(shared_tensors(backbone), private, frozen_tensors(backbone), histories(vectors, 0))
        scores = backbone.score(shared_tensors(backbone), user, items(1)[0], RANKING)
        scores.sum().backward()  # type: ignore[no-untyped-call]
        assert vectors.grad is not None
        assert set(torch.nonzero(vectors.grad.any(1)).flatten().tolist()) == set(HISTORY[0].tolist())
        assert all(tensor.grad is not None and tensor.grad.any() for tensor in private.values())

    def test_a_state_is_a_function_of_what_came_before_it(self, backbone: Backbone) -> None:
        """Those of the first items alone are the same, and no gradient reaches what came later: there is no leak."""
        if not backbone.causal:
            return
        shared, private = shared_tensors(backbone), of_user(backbone.init_private(0, KEYS), 0)
        vectors = torch.randn(9, DIM, generator=generator(5, "sequence"))
        whole = states(backbone, shared, private, vectors)
        for p in range(10):
            alone = states(backbone, shared, private, vectors[:p])
            for name, tensor in whole.items():
                assert len(tensor) == 10, "one state before each item, and one after the last"
                assert len(alone[name]) == p + 1
                torch.testing.assert_close(alone[name], tensor[: p + 1], rtol=1e-5, atol=1e-6)
            reached = vectors.clone().requires_grad_()
            made = states(backbone, shared, private, reached)
            total = torch.stack([(tensor[p] * torch.randn(tensor[p].shape)).sum() for tensor in made.values()]).sum()
            if p:
                (gradient,) = torch.autograd.grad(total, reached)
                assert not gradient[p:].any(), "a later item reaches an earlier state"
                assert gradient[p - 1].any(), "the item before is not read"

    def test_a_cohort_has_the_states_of_its_users(self, backbone: Backbone) -> None:
        """Also with private copies of what is shared, and whatever stands in the padding."""
        if not backbone.causal:
            return
        copies = [shared_tensors(backbone, user) for user in range(len(KEYS))]
        stacked = {name: torch.stack([copy[name] for copy in copies]) for name in backbone.shared}
        private, vectors = backbone.init_private(0, KEYS), items(len(KEYS))
        lengths = torch.tensor([ITEMS, 3, 0, 1, ITEMS])
        mask = torch.arange(ITEMS) < lengths.unsqueeze(1)
        for of_all, of_one in ((stacked, copies), (copies[0], [copies[0]] * len(KEYS))):
            together = states(backbone, of_all, private, vectors.where(mask.unsqueeze(-1), 1e3), mask)
            for user, n in enumerate(lengths.tolist()):
                alone = states(backbone, of_one[user], of_user(private, user), vectors[user, :n])
                for name, tensor in alone.items():
                    torch.testing.assert_close(together[name][user, : n + 1], tensor, rtol=1e-4, atol=1e-5)

    def test_all_states_are_scored_as_one_by_one(self, backbone: Backbone) -> None:
        """Against items of each, and against the same ones for all of a user's states."""
        if not backbone.causal:
            return
        shared, private = shared_tensors(backbone), backbone.init_private(0, KEYS)
        made = states(backbone, shared, private, items(len(KEYS)))
        n = ITEMS + 1
        for vectors in (items(len(KEYS), n), items(len(KEYS), 1)):
            together = backbone.score(shared, made, vectors, RANKING)
            assert together.shape == (len(KEYS), n, ITEMS)
            for p in range(n):
                one = {name: tensor[:, p] for name, tensor in made.items()}
                alone = backbone.score(shared, one, vectors[:, p % vectors.shape[1]], RANKING)
                torch.testing.assert_close(together[:, p], alone, rtol=1e-5, atol=1e-6)
