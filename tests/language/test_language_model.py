"""`backbone=language_model`: the contract, the engines, and what is judged by what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client_app.homes.users import Cohort
from client_app.training.cohort import CohortEngine
from client_app.training.contexts import reading
from client_app.training.engine import Engine, GlobalModel
from client_app.training.oracle import OracleEngine
from fedrec.backbones.base import Backbone
from fedrec.backbones.history import PlainHistory
from fedrec.backbones.language_model import LanguageModel
from fedrec.config.compose import compose
from fedrec.config.describe import load_member
from fedrec.core.errors import ConfigError
from fedrec.core.registry import embeddings, optims
from fedrec.core.rng import generator
from fedrec.core.tensors import Tensors
from fedrec.data.negatives import NegativeSampler
from fedrec.language.models import layers_of_model, register
from fedrec.optim.base import Recipe
from fedrec.stages.chain import plain_stages
from fedrec.stages.limits import Limits
from fedrec.testing.backbone import DIM, TEXTS, BackboneContract
from fedrec.testing.language import tiny
from peft_embeddings.model import Model

ITEMS, LENGTHS = 40, [7, 1, 12, 2, 5]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The digest of a random encoder that is registered here."""
    monkeypatch.setenv("FEDREC_HOME", str(tmp_path / "home"))
    return register(tiny("bert", tmp_path / "model", DIM).folder)


def made(model: str, **values: Any) -> LanguageModel:
    return LanguageModel(load_member("backbone", "language_model", model=model, rank=2, **values), DIM)


def test_a_site_counts_its_layers_and_its_weights(model: str, tmp_path: Path) -> None:
    """Its policy bounds the first, and the second are a part of the memory that work takes."""
    backbone = made(model)
    assert backbone.layers == 4
    numbers = sum(parameter.numel() for parameter in tiny("bert", tmp_path / "again", DIM).model.parameters())
    file = (tmp_path / "model" / "model.safetensors").stat().st_size
    assert backbone.resident == 4 * numbers < file
    assert made(model, precision="float64").resident == 8 * numbers + file, "what is made of a file is beside it"
    assert made(model, precision="bfloat16").resident == 2 * numbers + file


class TestContract(BackboneContract):
    @pytest.fixture(params=[False, True])
    def backbone(self, request: pytest.FixtureRequest, model: str) -> Backbone:
        return made(model, mean=0.5, item_bias=request.param)


def received_of(backbone: LanguageModel, embedding: str) -> GlobalModel:
    """A model in float64, away from its start."""
    member = embeddings.get(embedding)(load_member("embedding", embedding), ITEMS, DIM)
    rng = generator(3)
    texts = backbone.init_texts([f"{TEXTS[item % len(TEXTS)]} {'abcdefghij'[item % 10]}" for item in range(ITEMS)])
    model = Model(member, backbone)
    trainable, frozen = model.init(torch.randn(ITEMS, DIM, generator=rng), backbone.init_shared(rng), rng, texts=texts)
    moved = {n: (t + 0.1 * torch.randn(t.shape, generator=rng)).double() for n, t in trainable.items()}
    return GlobalModel(model, moved, {n: t.double() if t.is_floating_point() else t for n, t in frozen.items()})


def cohort_of(lengths: list[int]) -> Cohort:
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    items = np.concatenate([rng.permutation(ITEMS)[:length] for length in lengths]).astype(np.int64)
    return Cohort(rng.integers(0, 2**63, len(lengths)).astype(np.uint64), offsets, items)


def recipe_of(backbone: LanguageModel, **values: Any) -> Recipe:
    given = {"negatives": 6, "context_length": 5, "context_span": 8, "context_ahead": 2, **values}
    found: Recipe = optims.get("fast")(load_member("optim", "fast", **given), backbone.advice)
    return found


def trained(kind: type[Engine], recipe: Recipe, model: GlobalModel, cohort: Cohort, **named: Any) -> Any:
    stages = plain_stages(Limits(100, 1e9))
    return kind(recipe, NegativeSampler(np.arange(ITEMS)), stages, **named).train(model, cohort, {}, 5)


@pytest.mark.parametrize("values", [{}, {"contexts": 3, "shared_half_life": 1.5}, {"shared_negatives": False}], ids=str)
@pytest.mark.parametrize("embedding", ["fixed", "lora", "full"])
def test_the_cohort_trains_as_the_oracle(model: str, embedding: str, values: dict[str, Any]) -> None:
    backbone = made(model, precision="float64", mean=0.5, items=4, length=40)
    recipe, received = recipe_of(backbone, **values), received_of(backbone, embedding)
    cohort = cohort_of(LENGTHS)
    slow, fast = (
        trained(kind, recipe, received, cohort, **({"pairs_at_once": 700} if kind is CohortEngine else {}))
        for kind in (OracleEngine, CohortEngine)
    )
    assert any(bool(tensor.any()) for name, tensor in slow.update.total.items() if name.startswith("backbone."))
    torch.testing.assert_close(fast.update.total, slow.update.total, atol=1e-9, rtol=1e-9)
    assert fast.update.loss == pytest.approx(slow.update.loss)
    assert fast.update.weight == slow.update.weight == sum(LENGTHS), "a user counts its whole history"


def test_users_of_one_item_are_judged_by_it_after_an_empty_text(model: str) -> None:
    backbone = made(model, precision="float64", mean=0.5)
    received, cohort = received_of(backbone, "full"), cohort_of([1, 1])
    slow, fast = (trained(kind, recipe_of(backbone), received, cohort) for kind in (OracleEngine, CohortEngine))
    torch.testing.assert_close(fast.update.total, slow.update.total, atol=1e-9, rtol=1e-9)
    assert all(bool(tensor.isfinite().all()) for tensor in slow.update.total.values())
    assert slow.update.total["embedding.items"][cohort.items].any()


@pytest.mark.parametrize("contexts", [1, 4])
def test_something_follows_every_prefix_and_only_an_only_item_has_an_empty_one(model: str, contexts: int) -> None:
    backbone, cohort = made(model), cohort_of(LENGTHS)
    seen: dict[int, set[int]] = {user: set() for user in range(len(LENGTHS))}
    for seed in range(100):
        read = reading(cohort, recipe_of(backbone, contexts=contexts), seed)
        assert (contexts > 1) or np.array_equal(read.runs.keys, cohort.keys)
        for user, length in enumerate(LENGTHS):
            history = cohort.part(user, user + 1).items.tolist()
            for row in range(user * contexts, (user + 1) * contexts):
                items, fitted = read.runs.part(row, row + 1).items.tolist(), int(read.fitted[row])
                end = history.index(items[0]) + fitted
                assert items == history[max(0, end - 5) : end + 2]
                assert fitted < len(items), "something is left to be predicted"
                assert fitted > 0 or length == 1
                seen[user].add(end)
    assert seen == {0: {1, 2, 3, 4, 5, 6}, 1: {0}, 2: set(range(4, 12)), 3: {1}, 4: {1, 2, 3, 4}}


@pytest.mark.parametrize("kind", [OracleEngine, CohortEngine])
def test_the_items_of_the_text_are_not_predicted(model: str, kind: type[Engine]) -> None:
    """With `mean=0` their vectors are not even read: only those of what follows, and of negatives, move."""
    backbone = made(model, precision="float64")
    recipe, received, cohort = recipe_of(backbone), received_of(backbone, "full"), cohort_of([9])
    read = reading(cohort, recipe, 5)
    fitted = int(read.fitted[0])
    moved = set(
        torch.nonzero(trained(kind, recipe, received, cohort).update.total["embedding.items"].any(1)).flatten().tolist()
    )
    assert set(read.runs.items[fitted:].tolist()) <= moved
    assert not moved & set(read.runs.items[:fitted].tolist())


def test_a_users_vector_is_the_same_to_the_bit_in_any_company(model: str) -> None:
    backbone = made(model, mean=0.5)
    received = received_of(backbone, "full")
    shared = received.model.shared(received.trainable)
    table = torch.randn(ITEMS, DIM, generator=generator(1))
    items = torch.tensor([[3, 4, 5], [7, 1, 30], [3, 4, 5]])
    frozen = {"tokens": received.frozen["backbone.tokens"]}

    def state(of: torch.Tensor) -> torch.Tensor:
        return backbone.user(shared, {}, frozen, PlainHistory(of, table[of]))["state"]

    together = state(items)
    assert torch.equal(together[0], together[2])
    assert not torch.equal(together[0], together[1])
    for user in range(3):
        assert torch.equal(state(items[user]), together[user])


def test_a_state_is_the_pooled_text_of_the_latest_items_first(model: str) -> None:
    for pooling, pooled in (("mean", lambda h: h.mean(0)), ("first", lambda h: h[0]), ("last", lambda h: h[-1])):
        backbone = made(model, precision="float64", pooling=pooling, items=2, length=12, scale=3.0)
        received = received_of(backbone, "fixed")
        shared, tokens = received.model.shared(received.trainable), received.frozen["backbone.tokens"]
        layers = layers_of_model(model, backbone.lora, "float64", torch.device("cpu"))
        words = [token for item in (9, 8) for token in tokens[item].tolist() if token >= 0]
        text = torch.tensor([[2, *words[:10], 3]])
        expected = pooled(layers.whole(shared, text, torch.ones_like(text))[0])
        items = torch.tensor([7, 8, 9])
        found = backbone.user(shared, {}, {"tokens": tokens}, PlainHistory(items, torch.zeros(3, DIM)))["state"]
        torch.testing.assert_close(found.double(), 3 * expected / expected.norm(), rtol=1e-5, atol=1e-6)


def test_the_mean_counts_later_items_twice_as_much(model: str) -> None:
    still, moved = made(model, scale=1.0), made(model, scale=1.0, mean=2.0, half_life=1.0)
    received = received_of(still, "fixed")
    shared, frozen = received.model.shared(received.trainable), {"tokens": received.frozen["backbone.tokens"]}
    items, vectors = torch.tensor([1, 2, 3]), torch.randn(3, DIM, generator=generator(2))
    first, second = (each.user(shared, {}, frozen, PlainHistory(items, vectors))["state"] for each in (still, moved))
    expected = 2 * (vectors[0] / 4 + vectors[1] / 2 + vectors[2]) / 1.75
    torch.testing.assert_close(second - first, expected, rtol=1e-5, atol=1e-6)


def test_lora_starts_at_the_model_itself(model: str) -> None:
    backbone = made(model)
    start = backbone.init_shared(generator(0))
    zero: Tensors = {name: torch.zeros_like(tensor) for name, tensor in start.items()}
    frozen = backbone.init_texts(TEXTS)
    history = PlainHistory(torch.tensor([0, 3]), torch.zeros(2, DIM))
    assert torch.equal(
        backbone.user(start, {}, frozen, history)["state"], backbone.user(zero, {}, frozen, history)["state"]
    )
    assert all(bool(tensor.any()) == name.endswith(".A") for name, tensor in start.items())


def test_tokens_from_the_network_are_those_of_the_model(model: str) -> None:
    backbone = made(model)
    tokens = backbone.init_texts(TEXTS)["tokens"]
    assert backbone.frozen_problem({"tokens": tokens}) is None
    tokens[2, 1] = 50
    assert backbone.frozen_problem({"tokens": tokens}) == "a token that is none of the language model's 50"


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose(["backbone=language_model", *overrides], base=None)
    return caught.value.problems


def test_what_does_not_fit_is_said_all_at_once(model: str) -> None:
    found = problems(
        f"backbone.model={model}",
        "backbone.length=100",
        "backbone.item_tokens=101",
        "base_table.dim=16",
        "base_table.start=random",
        "optim=paper",
    )
    for part in (
        "base_table.dim=16: the hidden states of backbone.model have 8 numbers",
        "backbone.length=100: the language model reads texts of up to 64 tokens",
        "backbone.item_tokens=101: a text of backbone.length=100 tokens has no room",
        "with base_table.start=random; give base_table.start=text",
        "optim=paper: backbone=language_model has read the items of a history",
    ):
        assert any(part in problem for problem in found), part
    assert len(found) == 5


def test_a_model_that_is_missing_or_cannot_be_told_is_a_problem(model: str) -> None:
    common = ("optim=fast", "base_table.dim=8")
    (found,) = problems(f"backbone.model={64 * '0'}", *common)
    assert "this machine does not have this language model" in found
    (found,) = problems(f"backbone.model={model}", "backbone.modules=[q_proj]", *common)
    assert "q_proj" in found
    assert any("backbone.model" in problem for problem in problems(*common))
    (found,) = problems("backbone.model=/models/minilm", *common)
    assert found.startswith("backbone.model=/models/minilm: expected")


def test_what_a_server_asks_for_has_to_fit_the_model_of_the_client(model: str) -> None:
    made(model).require_here()
    with pytest.raises(ConfigError, match="reads texts of up to 64 tokens"):
        made(model, length=65).require_here()
    with pytest.raises(ConfigError, match="have 8 numbers"):
        LanguageModel(made(model).config, 9).require_here()
    with pytest.raises(ConfigError, match="does not have this language model"):
        made(64 * "0").require_here()


@pytest.mark.parametrize(("values", "said"), [({"window": 5}, "optim.window=5")])
def test_a_window_is_refused(model: str, values: dict[str, Any], said: str) -> None:
    backbone = made(model)
    assert any(said in problem for problem in recipe_of(backbone, **values).refusals(backbone))
    assert recipe_of(backbone).refusals(backbone) == []
