"""The cohort engine gives what training one user after the other gives."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from client_app.homes.users import Cohort
from client_app.training import local_training
from client_app.training.cohort import CohortEngine
from client_app.training.engine import Engine, GlobalModel
from client_app.training.oracle import OracleEngine
from client_app.training.products import OneStep
from fedrec.backbones.base import Advice, Backbone, ScoreContext
from fedrec.codecs.base import Codec
from fedrec.codecs.float32 import Float32Codec, Float32Config
from fedrec.config.describe import complete_members, load_member
from fedrec.config.validate import field_types
from fedrec.core import registry
from fedrec.core.registry import MemberConfig
from fedrec.core.rng import counter_normal, generator
from fedrec.core.tensors import Spec, Tensors, TensorSpec
from fedrec.data.negatives import NegativeSampler
from fedrec.optim.base import Adam, LocalStep, Recipe, Sgd
from fedrec.optim.losses import LOSSES
from fedrec.privacy.base import PrivacyMechanism
from fedrec.privacy.none import NoPrivacy, NoPrivacyConfig
from fedrec.stages.chain import Stages, plain_stages
from fedrec.stages.contributions import Contributions
from fedrec.stages.draws import Draws
from fedrec.stages.limits import Limits
from fedrec.testing.privacy import SETTLED
from peft_embeddings.model import Model

DIM = 6


class MlpBackbone(Backbone):
    """A backbone with shared dense tensors, to hold the engines to the whole contract: an MLP over (user, item)."""

    advice = Advice(loss="bpr", lr=0.01)

    @property
    def shared(self) -> Spec:
        return {"w1": TensorSpec((2 * self.dim, 5)), "b1": TensorSpec((5,)), "w2": TensorSpec((5, 1))}

    @property
    def private(self) -> Spec:
        return {"user": TensorSpec((self.dim,))}

    def init_shared(self, rng: torch.Generator) -> Tensors:
        return {name: torch.randn(spec.shape, generator=rng) * 0.5 for name, spec in self.shared.items()}

    def init_private(self, seed: int, keys: np.ndarray) -> Tensors:
        return {"user": torch.from_numpy(counter_normal(seed, keys[:, None], np.arange(self.dim)[None, :])).float()}

    def score(self, shared: Tensors, private: Tensors, item_vectors: Tensor, context: ScoreContext) -> Tensor:
        user = private["user"].unsqueeze(-2).expand(*item_vectors.shape[:-1], self.dim)
        hidden = (torch.cat([user, item_vectors], -1) @ shared["w1"] + shared["b1"].unsqueeze(-2)).relu()
        if context.uniform is not None:  # dropout, on two layers
            hidden = hidden * (context.uniform("hidden", hidden.shape[-1]) >= 0.3)
            item_vectors = item_vectors * (context.uniform("item", 1) >= 0.3)
        return (hidden @ shared["w2"]).squeeze(-1) + 0.1 * item_vectors.sum(-1)


@dataclass
class Steps(Recipe):
    """A recipe made of given steps."""

    steps: Sequence[LocalStep]
    q: int
    kind: Literal["bpr", "bce", "softmax"]
    shared: bool = False
    fresh: bool = True

    @property
    def negatives(self) -> int:
        return self.q

    @property
    def shared_negatives(self) -> bool:
        return self.shared

    @property
    def fresh_negatives(self) -> bool:
        return self.fresh

    def local_steps(self) -> Sequence[LocalStep]:
        return self.steps

    def solve_steps(self) -> Sequence[LocalStep]:
        return [LocalStep(True, False, Adam(0.05), self.steps[0].half_life if self.steps else 1.5)] * 3

    def loss(self, positive: Tensor, negative: Tensor, mask: Tensor) -> Tensor:
        return LOSSES[self.kind](positive, negative, mask)

    def server_update(self, model: Tensors, mean_delta: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        raise AssertionError("no server here")


class Doubling(PrivacyMechanism):
    """A mechanism that changes every number of an update."""

    reads = "dense"

    def on_devices(self, given: Contributions, draws: Draws) -> Contributions:
        (key,) = given.keys
        more = 1e-3 * (draws.again("doubling", int(key)) % 7)
        return given.changed(whole={name: 2 * tensor + more for name, tensor in given.whole.items()})


RECIPES: dict[str, list[LocalStep]] = {
    "adam": [LocalStep(True, True, Adam(0.01))] * 3,
    "sgd": [LocalStep(True, True, Sgd(0.3))] * 3,
    "private_first": [LocalStep(True, False, Adam(0.05))] * 2 + [LocalStep(False, True, Sgd(1.0))],
    "decayed": [LocalStep(True, False, Adam(0.05, weight_decay=0.1))] * 2 + [LocalStep(False, True, Sgd(1.0))],
    "descent_first": [LocalStep(True, False, Sgd(1.0, 0.1))] * 2 + [LocalStep(False, True, Sgd(1.0))],
    "recent_first": [LocalStep(True, False, Adam(0.05), 2.5)] * 2 + [LocalStep(False, True, Sgd(1.0), 40.0)],
    "recent_alone": [LocalStep(True, True, Adam(0.01), 0.1)] * 2,
    "two_adams": [
        LocalStep(True, True, Adam(0.01)),
        LocalStep(True, False, Adam(0.02)),
        LocalStep(True, True, Adam(0.01)),
    ],
}
EMBEDDINGS = sorted(set(registry.embeddings.names()) - {"fixed"})
EMBEDDINGS += [f"{name}/C" for name in EMBEDDINGS if hasattr(load_member("embedding", name), "variant")]
"""Every member as its yaml has it, and of a compressed one also what stands alone.

`fixed` trains nothing, as some backbones share nothing: it has a test of its own.
"""

PRIVACY: PrivacyMechanism = NoPrivacy(NoPrivacyConfig("none"))


def make_cohort(lengths: Sequence[int], n_items: int, seed: int) -> Cohort:
    rng = np.random.default_rng(seed)
    items = [rng.permutation(n_items)[:length] for length in lengths]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in items])])
    keys = rng.integers(0, 2**63, len(lengths)).astype(np.uint64)
    return Cohort(keys, offsets.astype(np.int64), np.concatenate(items).astype(np.int64))


def make_model(embedding: str, backbone: Any, n_items: int, dtype: torch.dtype) -> GlobalModel:
    name, _, variant = embedding.partition("/")
    config = load_member("embedding", name, **({"variant": variant} if variant else {}))
    model = Model(registry.embeddings.get(name)(config, n_items, DIM), backbone)
    rng = generator(3, "test")
    base = torch.randn(n_items, DIM, generator=rng)
    trainable, frozen = model.init(base, backbone.init_shared(rng), rng, counts=torch.arange(n_items) % 5.0)
    # Away from the start, where a compressed part gives nothing and half of the gradients are zero.
    moved = {
        name: (tensor + 0.1 * torch.randn(tensor.shape, generator=rng)).to(dtype) for name, tensor in trainable.items()
    }
    return GlobalModel(model, moved, {n: t.to(dtype) if t.is_floating_point() else t for n, t in frozen.items()})


def make_backbone(name: str) -> Any:
    """A member by its name, `mlp`, or a member `<name> with dropout`."""
    if name == "mlp":
        return MlpBackbone(MemberConfig("mlp"), DIM)
    name, _, with_dropout = name.partition(" with ")
    values = {"dropout": 0.3} if with_dropout else {}
    return registry.backbones.get(name)(load_member("backbone", name, **values), DIM)


BACKBONES = complete_members("backbone")
DROPPING = [
    f"{name} with dropout" for name in BACKBONES if "dropout" in field_types(registry.backbones.get(name).config_class)
]


def engines(
    recipe: Recipe,
    n_items: int,
    privacy: PrivacyMechanism = PRIVACY,
    norm: float = 1e9,
    codec: Codec | None = None,
    masked: bool = False,
) -> list[Engine]:
    sampler = NegativeSampler(np.arange(n_items))
    stages = Stages([privacy], codec or Float32Codec(Float32Config("float32")), Limits(3, norm), masked=masked)
    return [kind(recipe, sampler, stages) for kind in (OracleEngine, CohortEngine)]


def private_of(model: GlobalModel, cohort: Cohort, dtype: torch.dtype) -> Tensors:
    return {name: tensor.to(dtype) for name, tensor in model.model.backbone.init_private(1, cohort.keys).items()}


def assert_same(model: GlobalModel, cohort: Cohort, pair: list[Engine], dtype: torch.dtype, tolerance: float) -> None:
    private = private_of(model, cohort, dtype)
    oracle, fast = (engine.train(model, cohort, private, seed=5) for engine in pair)
    assert oracle.update.dropped == fast.update.dropped
    assert (oracle.update.users, oracle.update.examples) == (fast.update.users, fast.update.examples)
    np.testing.assert_array_equal(oracle.taken, fast.taken)
    np.testing.assert_allclose(fast.update.weight, oracle.update.weight)
    np.testing.assert_allclose(fast.update.loss, oracle.update.loss, rtol=1e-5)
    for name, tensor in oracle.update.total.items():
        torch.testing.assert_close(
            fast.update.total[name],
            tensor,
            atol=tolerance,
            rtol=tolerance,
            msg=lambda text, name=name: f"{name}: {text}",
        )
    for name, tensor in oracle.private.items():
        torch.testing.assert_close(
            fast.private[name], tensor, atol=tolerance, rtol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("backbone", ["fedncf", "sasrec"])
def test_over_fixed_vectors_the_backbone_alone_moves(backbone: str) -> None:
    model = make_model("fixed", make_backbone(backbone), 40, torch.float64)
    cohort = make_cohort([7, 1, 19, 30, 2], 40, seed=0)
    pair = engines(Steps(RECIPES["sgd"], 2, "bce"), 40)
    assert_same(model, cohort, pair, torch.float64, 1e-9)
    total = pair[1].train(model, cohort, private_of(model, cohort, torch.float64), seed=5).update.total
    assert all(name.startswith("backbone.") for name in total)
    assert any(bool(tensor.any()) for tensor in total.values())


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("backbone", [*BACKBONES, *DROPPING, "mlp"])
@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_equals_the_oracle_in_float64(embedding: str, backbone: str, recipe: str) -> None:
    model = make_model(embedding, make_backbone(backbone), 40, torch.float64)
    cohort = make_cohort([7, 1, 19, 30, 2], 40, seed=0)
    # The backbone's own loss: under BPR a last bias has no gradient but rounding, of which Adam makes much.
    loss: Any = model.model.backbone.advice.loss
    pair = engines(Steps(RECIPES[recipe], 2, loss), 40)
    assert_same(model, cohort, pair, torch.float64, 1e-9)


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_equals_the_oracle_for_sgd_in_float32(embedding: str) -> None:
    model = make_model(embedding, make_backbone("mlp"), 40, torch.float32)
    pair = engines(Steps(RECIPES["sgd"], 1, "bce"), 40)
    assert_same(model, make_cohort([7, 1, 19, 30, 2], 40, seed=0), pair, torch.float32, 1e-5)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 25), min_size=1, max_size=8),
    q=st.integers(1, 4),
    kind=st.sampled_from(sorted(LOSSES)),
    recipe=st.sampled_from(sorted(RECIPES)),
    embedding=st.sampled_from(EMBEDDINGS),
    pairs_at_once=st.integers(1, 60),
    seed=st.integers(0, 1000),
    shared=st.booleans(),
    fresh=st.booleans(),
    backbone=st.sampled_from(["mlp", "fedmf"]),
)
def test_equals_the_oracle_for_any_shape(
    lengths: list[int],
    q: int,
    kind: Any,
    recipe: str,
    embedding: str,
    pairs_at_once: int,
    seed: int,
    shared: bool,
    fresh: bool,
    backbone: str,
) -> None:
    model = make_model(embedding, make_backbone(backbone), 25, torch.float64)
    pair = engines(Steps(RECIPES[recipe], q, kind, shared, fresh), 25)
    pair[1].pairs_at_once = pairs_at_once
    # A user of 25 items has seen everything: both engines leave it out and count it.
    assert_same(model, make_cohort(lengths, 25, seed), pair, torch.float64, 1e-9)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[OneStep]:
    """The outer products that are made from now on, of as small a cohort as there is here, too."""
    made: list[OneStep] = []
    monkeypatch.setattr("client_app.training.products._PRICE", 1)

    def kept(*given: Any) -> OneStep:
        made.append(OneStep(*given))
        return made[-1]

    monkeypatch.setattr(local_training, "OneStep", kept)
    return made


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_the_oracle_agrees_and_so_do_gathered_vectors(
    embedding: str, fresh: bool, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = counted(monkeypatch)
    model, cohort = (
        make_model(embedding, make_backbone("fedmf"), 40, torch.float64),
        make_cohort([7, 1, 19, 30, 2], 40, 0),
    )
    pair = engines(Steps(RECIPES["recent_first"], 9, "softmax", shared, fresh), 40)
    assert_same(model, cohort, pair, torch.float64, 1e-9)
    assert len(made) == 1
    private = private_of(model, cohort, torch.float64)
    multiplied = pair[1].train(model, cohort, private, 5)
    monkeypatch.setattr(local_training, "products_pay", lambda *_: False)
    gathered = pair[1].train(model, cohort, private, 5)
    assert len(made) == 2
    for name, tensor in gathered.update.total.items():
        torch.testing.assert_close(multiplied.update.total[name], tensor, atol=1e-12, rtol=1e-12)


def test_steps_beside_the_one_keep_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    made = counted(monkeypatch)
    model, cohort = make_model("lora", make_backbone("fedmf"), 40, torch.float64), make_cohort([7, 1, 19, 30, 2], 40, 0)
    private, shared = LocalStep(True, False, Sgd(0.5)), LocalStep(False, True, Sgd(1.0))
    for steps in ([shared, shared], [shared, private], [LocalStep(True, True, Sgd(1.0))], [private, shared, private]):
        assert_same(model, cohort, engines(Steps(steps, 9, "bpr", True), 40), torch.float64, 1e-9)
    assert not made


def test_small_parts_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of copies, too: each user alone in its part gives what all give together."""
    model, cohort = make_model("lora", make_backbone("fedmf"), 40, torch.float64), make_cohort([7, 1, 19, 30, 2], 40, 0)
    private = private_of(model, cohort, torch.float64)
    for recipe in ("adam", "private_first"):
        engine = engines(Steps(RECIPES[recipe], 2, "bpr"), 40)[1]
        together = engine.train(model, cohort, private, 5)
        for module in ("client_app.training.products", "fedrec.stages.contributions"):
            monkeypatch.setattr(f"{module}._NUMBERS_AT_ONCE", 1)
        apart = engine.train(model, cohort, private, 5)
        monkeypatch.undo()
        np.testing.assert_array_equal(apart.taken, together.taken)
        for name, tensor in together.update.total.items():
            torch.testing.assert_close(apart.update.total[name], tensor, atol=1e-12, rtol=1e-12)
        for name, tensor in together.private.items():
            assert torch.equal(apart.private[name], tensor)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_sum_of_rows_trains_alike_from_zero_and_from_semantic_codebooks(recipe: str) -> None:
    """What P-RQ-VAE says of its starts: neither SGD nor Adam sees where a sum began."""
    cohort = make_cohort([7, 1, 19, 30, 2], 40, seed=0)
    base = torch.randn(40, DIM, generator=generator(3, "base"))
    moved = {}
    for start in ("zero", "semantic"):
        config = load_member("embedding", "rqvae", levels=2, codes=8, start=start)
        model = Model(registry.embeddings.get("rqvae")(config, 40, DIM), make_backbone("fedmf"))
        trainable, frozen = model.init(base, {}, generator(0))
        received = GlobalModel(model, *(_in_float64(tensors) for tensors in (trainable, frozen)))
        assert bool(trainable["embedding.codebooks"].any()) == (start == "semantic")
        for engine in engines(Steps(RECIPES[recipe], 2, "bpr"), 40):
            trained = engine.train(received, cohort, private_of(received, cohort, torch.float64), seed=5)
            moved[start, type(engine)] = trained.update.total["embedding.codebooks"]
    first, *others = moved.values()
    assert first.any()
    for other in others:
        torch.testing.assert_close(other, first, atol=1e-9, rtol=1e-9)


def _in_float64(tensors: Tensors) -> Tensors:
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("backbone", [*BACKBONES, *DROPPING, "mlp"])
def test_solve_moves_private_tensors_alone_and_equals_the_oracle(backbone: str) -> None:
    model = make_model("lora", make_backbone(backbone), 40, torch.float64)
    before = {name: tensor.clone() for name, tensor in model.trainable.items()}
    loss: Any = model.model.backbone.advice.loss
    cohort = make_cohort([7, 1, 19], 40, seed=0)
    private = private_of(model, cohort, torch.float64)
    for shared, fresh in itertools.product([False, True], repeat=2):
        recipe = Steps([], 2, loss, shared, fresh)
        oracle, fast = (e.solve(model, cohort, private, seed=2) for e in engines(recipe, 40))
        assert fast.keys() == oracle.keys() == private.keys()
        for name, tensor in oracle.items():
            torch.testing.assert_close(fast[name], tensor, atol=1e-9, rtol=1e-9)
            assert not torch.equal(tensor, private[name])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.trainable.items())


@pytest.mark.parametrize("kind", [OracleEngine, CohortEngine])
def test_draws_differ_between_users_steps_items_and_names(kind: type[Engine]) -> None:
    """And are uniform: what a backbone's dropout is made of."""
    drawn: list[np.ndarray] = []

    class Recording(MlpBackbone):
        def score(self, shared: Tensors, private: Tensors, item_vectors: Tensor, context: ScoreContext) -> Tensor:
            assert context.uniform is not None
            drawn.extend(context.uniform(name, 3).reshape(-1, 3).numpy() for name in ("first", "second"))
            return super().score(shared, private, item_vectors, context)

    model = make_model("lora", Recording(MemberConfig("recording"), DIM), 40, torch.float64)
    cohort = make_cohort([30, 30], 40, seed=0)
    recipe = Steps(RECIPES["adam"], 2, "bpr")
    engine = kind(recipe, NegativeSampler(np.arange(40)), plain_stages(Limits(3, 1e9)))
    engine.train(model, cohort, private_of(model, cohort, torch.float64), seed=5)
    draws = np.concatenate(drawn).ravel()
    users, steps, names, places, width = 2, 3, 2, 30 * 3, 3
    assert len(draws) >= users * steps * names * places * width, "and more where there is padding"
    assert len(np.unique(draws)) == users * steps * names * places * width
    assert draws.min() >= 0.0
    assert draws.max() < 1.0
    assert draws.mean() == pytest.approx(0.5, abs=4 * (1 / 12 / len(draws)) ** 0.5)


def test_a_user_alone_trains_as_it_does_in_a_crowd() -> None:
    model = make_model("lora", make_backbone("fedmf"), 40, torch.float64)
    cohort = make_cohort([7, 1, 19, 30, 2], 40, seed=0)
    private = private_of(model, cohort, torch.float64)
    engine = engines(Steps(RECIPES["adam"], 1, "bpr"), 40)[1]
    crowd = engine.train(model, cohort, private, seed=5)
    for user in range(len(cohort)):
        alone = engine.train(model, cohort.part(user, user + 1), {"user": private["user"][user : user + 1]}, seed=5)
        torch.testing.assert_close(alone.private["user"][0], crowd.private["user"][user], atol=1e-12, rtol=1e-12)


def test_a_bad_user_costs_nobody_else() -> None:
    model = make_model("lora", make_backbone("fedmf"), 40, torch.float32)
    cohort = make_cohort([7, 5, 19], 40, seed=0)
    private = private_of(model, cohort, torch.float32)
    private["user"][1] = float("nan")
    for engine in engines(Steps(RECIPES["sgd"], 1, "bpr"), 40):
        trained = engine.train(model, cohort, private, seed=5)
        assert trained.update.dropped == {"non_finite": 1, "too_large": 0, "no_negatives": 0}
        assert trained.taken.tolist() == [True, False, True]
        assert all(bool(tensor.isfinite().all()) for tensor in trained.update.total.values())


def test_an_update_above_the_norm_limit_is_dropped_and_counted() -> None:
    model = make_model("full", make_backbone("fedmf"), 40, torch.float32)
    cohort = make_cohort([7, 5, 19], 40, seed=0)
    private = private_of(model, cohort, torch.float32)
    private["user"][2] *= 1000
    for engine in engines(Steps([LocalStep(True, True, Sgd(1.0))], 1, "bpr"), 40, norm=20.0):
        trained = engine.train(model, cohort, private, seed=5)
        assert trained.update.dropped["too_large"] == 1
        assert trained.taken.tolist() == [True, True, False]


@pytest.mark.parametrize("masked", [False, True])
def test_where_others_count_on_it_who_gives_nothing_gives_its_share_of_noise(masked: bool) -> None:
    """Neither a user that diverged nor one who knows the whole catalogue may make the noise of a masked sum smaller."""
    made = registry.privacies.get("distributed_gaussian")(
        load_member("privacy", "distributed_gaussian", **SETTLED["distributed_gaussian"])
    )
    model = make_model("lora", make_backbone("fedmf"), 40, torch.float32)
    cohort = make_cohort([5, 40], 40, seed=0)
    private = private_of(model, cohort, torch.float32)
    private["user"][0] = float("nan")
    for engine in engines(Steps(RECIPES["sgd"], 1, "bpr"), 40, made, masked=masked):
        update, _, taken = engine.train(model, cohort, private, seed=5)
        assert not taken.any()
        nothing = {name: torch.zeros_like(tensor) for name, tensor in update.total.items()}
        shares = [made.shares.of(nothing, key, Draws(5, fresh=False)) for key in cohort.keys.tolist() if masked]
        expected = {name: tensor + sum(share[name] for share in shares) for name, tensor in nothing.items()}
        assert all(torch.equal(update.total[name], tensor) for name, tensor in expected.items())
        assert any(bool(tensor.any()) for tensor in expected.values()) is masked


@pytest.mark.parametrize("privacy", [PRIVACY, Doubling(MemberConfig("doubling"))], ids=["at once", "one by one"])
@pytest.mark.parametrize("scale", ["tensor", "row"])
@pytest.mark.parametrize("codec", ["float16", "int8"])
@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_each_users_update_is_rounded_as_its_own_packet_would_be(
    embedding: str, codec: str, scale: str, privacy: PrivacyMechanism
) -> None:
    model = make_model(embedding, make_backbone("mlp"), 40, torch.float64)
    cohort = make_cohort([7, 1, 19, 30, 2], 40, seed=0)
    made: Codec = registry.codecs.get(codec)(load_member("codec", codec, scale=scale))
    pair = engines(Steps(RECIPES["adam"], 1, "bce"), 40, privacy, codec=made)
    assert_same(model, cohort, pair, torch.float64, 1e-9)
    private = private_of(model, cohort, torch.float64)
    exact = engines(Steps(RECIPES["adam"], 1, "bce"), 40, privacy)
    plain = exact[1].train(model, cohort, private, seed=5).update.total
    coarse = pair[1].train(model, cohort, private, seed=5).update.total
    assert any(not torch.equal(plain[name], coarse[name]) for name in plain)


def test_a_mechanism_sees_each_whole_update() -> None:
    model = make_model("lora", make_backbone("mlp"), 30, torch.float64)
    pair = engines(Steps(RECIPES["sgd"], 1, "bpr"), 30, privacy=Doubling(MemberConfig("doubling")))
    assert_same(model, make_cohort([3, 9, 1], 30, seed=1), pair, torch.float64, 1e-9)


@pytest.mark.parametrize("pairs_at_once", [65_536, 10])
@pytest.mark.parametrize("embedding", EMBEDDINGS)
@pytest.mark.parametrize("privacy", [*registry.privacies.names(), "normal"])
def test_every_mechanism_protects_as_the_oracle_has_it(privacy: str, embedding: str, pairs_at_once: int) -> None:
    name = "pseudo_items" if privacy == "normal" else privacy
    values = {"values": "normal"} if privacy == "normal" else SETTLED.get(name, {})
    made = registry.privacies.get(name)(load_member("privacy", name, **values))
    model = make_model(embedding, make_backbone("mlp"), 200, torch.float64)
    pair = engines(Steps(RECIPES["adam"], 2, "bpr"), 200, privacy=made)
    pair[1].pairs_at_once = pairs_at_once
    assert_same(model, make_cohort([3, 9, 1, 40, 60], 200, seed=1), pair, torch.float64, 1e-9)


@pytest.mark.parametrize("values", ["resampled", "normal"])
def test_added_rows_of_a_bad_user_cost_nobody_else(values: str) -> None:
    privacy = registry.privacies.get("pseudo_items")(load_member("privacy", "pseudo_items", values=values))
    model = make_model("lora", make_backbone("fedmf"), 60, torch.float32)
    cohort = make_cohort([7, 5, 19], 60, seed=0)
    private = private_of(model, cohort, torch.float32)
    private["user"][1] = float("nan")
    for engine in engines(Steps(RECIPES["sgd"], 1, "bpr"), 60, privacy):
        trained = engine.train(model, cohort, private, seed=5)
        assert trained.update.dropped == {"non_finite": 1, "too_large": 0, "no_negatives": 0}
        assert all(bool(tensor.isfinite().all()) for tensor in trained.update.total.values())


def test_no_optimiser_state_crosses_users_or_rounds() -> None:
    """Twins (same items, same key) get the same update, whoever trains before them, this round or the last."""
    model = make_model("full", make_backbone("fedmf"), 40, torch.float64)
    one = make_cohort([7], 40, seed=0)
    other = make_cohort([12], 40, seed=9)
    both = Cohort(
        np.concatenate([other.keys, one.keys]),
        np.array([0, 12, 19]),
        np.concatenate([other.items, one.items]),
    )
    private = private_of(model, both, torch.float64)
    mine = {"user": private["user"][1:]}
    for engine in engines(Steps(RECIPES["adam"], 1, "bpr"), 40):
        first = engine.train(model, one, mine, seed=5)
        engine.train(model, other, {"user": private["user"][:1]}, seed=4)
        again = engine.train(model, one, mine, seed=5)
        behind = engine.train(model, both, private, seed=5)
        torch.testing.assert_close(again.update.total, first.update.total, atol=0, rtol=0)
        torch.testing.assert_close(behind.private["user"][1], first.private["user"][0], atol=1e-12, rtol=1e-12)
