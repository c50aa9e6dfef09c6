"""`backbone=title_generator`: the contract, the engines, the loss and what is written against transformers' own."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from client_app.homes.users import Cohort
from client_app.training.cohort import CohortEngine
from client_app.training.engine import Engine, GlobalModel
from client_app.training.oracle import OracleEngine
from fedrec.backbones.base import Backbone
from fedrec.backbones.history import PlainHistory
from fedrec.backbones.title_generator import TitleGenerator
from fedrec.config.compose import compose
from fedrec.config.describe import load_member
from fedrec.core.errors import ConfigError, FedrecError
from fedrec.core.registry import embeddings, encoders, optims
from fedrec.core.rng import generator
from fedrec.core.tensors import Tensors
from fedrec.data.negatives import NegativeSampler
from fedrec.language.causal import Causal, problem_of, read_causal
from fedrec.language.loading import Lora
from fedrec.language.models import lora_spec, register
from fedrec.language.prompts import Prompt, listed, prompt_of
from fedrec.optim.base import Recipe
from fedrec.stages.chain import plain_stages
from fedrec.stages.limits import Limits
from fedrec.testing.backbone import DIM, TEXTS
from fedrec.testing.language import Style, Tiny, tiny
from fedrec.testing.own_loss import OwnLossContract
from peft_embeddings.model import Model

ITEMS, LENGTHS = 40, [7, 1, 12, 2, 5]
LORA = Lora(2, 4.0, ("q_proj", "v_proj"))


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The digest of a random causal model that is registered here."""
    monkeypatch.setenv("FEDREC_HOME", str(tmp_path / "home"))
    return register(tiny("llama", tmp_path / "model", DIM, head=True).folder)


@pytest.fixture(scope="module", params=["llama", "gemma"])
def writer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A causal model with a head of its own, and one whose head is its embeddings and whose attention slides."""
    style: Style = request.param
    return tiny(style, tmp_path_factory.mktemp(style), head=True)


def made(model: str, **values: Any) -> TitleGenerator:
    given = {"item_tokens": 8, "length": 60, "before": "chosen\n", "rank": 2, **values}
    return TitleGenerator(load_member("backbone", "title_generator", model=model, **given), DIM)


class TestContract(OwnLossContract):
    @pytest.fixture
    def backbone(self, model: str) -> Backbone:
        return made(model)


def received_of(backbone: TitleGenerator) -> GlobalModel:
    """A model in float64, away from its start."""
    member = embeddings.get("fixed")(load_member("embedding", "fixed"), ITEMS, DIM)
    rng = generator(3)
    texts = backbone.init_texts([f"{TEXTS[item % len(TEXTS)]} {'abcdefghij'[item % 10]}" for item in range(ITEMS)])
    model = Model(member, backbone)
    trainable, frozen = model.init(torch.randn(ITEMS, DIM, generator=rng), backbone.init_shared(rng), rng, texts=texts)
    moved = {n: (t + 0.1 * torch.randn(t.shape, generator=rng)).double() for n, t in trainable.items()}
    return GlobalModel(model, moved, {n: t.double() if t.is_floating_point() else t for n, t in frozen.items()})


def recipe_of(backbone: TitleGenerator, **values: Any) -> Recipe:
    given = {"loss": "own", "negatives": 0, "context_length": 5, "context_span": 8, "context_ahead": 2, **values}
    found: Recipe = optims.get("fast")(load_member("optim", "fast", **given), backbone.advice)
    return found


def cohort_of(lengths: list[int]) -> Cohort:
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    items = np.concatenate([rng.permutation(ITEMS)[:length] for length in lengths]).astype(np.int64)
    return Cohort(rng.integers(0, 2**63, len(lengths)).astype(np.uint64), offsets, items)


def trained(kind: type[Engine], recipe: Recipe, model: GlobalModel, lengths: list[int], **named: Any) -> Any:
    stages = plain_stages(Limits(100, 1e9))
    cohort = cohort_of(lengths)
    return kind(recipe, NegativeSampler(np.arange(ITEMS)), stages, **named).train(model, cohort, {}, 5)


@pytest.mark.parametrize("at_once", [700, 65_536])
@pytest.mark.parametrize("values", [{}, {"contexts": 3, "shared_half_life": 1.5}, {"context_ahead": 1}], ids=str)
def test_the_cohort_trains_as_the_oracle(model: str, values: dict[str, Any], at_once: int) -> None:
    """One user after the other, and all of them in one chunk."""
    backbone = made(model, precision="float64", items=3)
    recipe, received = recipe_of(backbone, **values), received_of(backbone)
    slow = trained(OracleEngine, recipe, received, LENGTHS)
    fast = trained(CohortEngine, recipe, received, LENGTHS, pairs_at_once=at_once)
    assert all(bool(tensor.any()) for tensor in slow.update.total.values()), "the loss moves all of LoRA"
    torch.testing.assert_close(fast.update.total, slow.update.total, atol=1e-9, rtol=1e-9)
    assert fast.update.loss == pytest.approx(slow.update.loss)
    assert fast.update.weight == slow.update.weight == sum(LENGTHS), "a user counts its whole history"


def test_memory_is_counted_for_every_item_that_is_judged(model: str) -> None:
    """Each of them takes the prompt through the model anew, and logits of the whole vocabulary for its title."""
    backbone = made(model)
    for values, passes in (({}, 2), ({"contexts": 3}, 2), ({"contexts": 3, "context_ahead": 1}, 1)):
        contexts = recipe_of(backbone, **values).contexts
        assert contexts is not None
        assert contexts.passes(own_loss=True) == passes
        assert contexts.passes(own_loss=False) == 1
    layers, words = 4 * (24 * DIM), 3 * 9 * 50
    tokens = 8 + 3 * 9  # the prompt's own words, two titles of a history, and the one that is judged
    assert backbone.numbers_per_history(2) == tokens * (layers + 4 * 3 * 2 * tokens) + words
    assert backbone.numbers_per_history(1000) == 60 * (layers + 4 * 3 * 2 * 60) + words, "as long as a text may be"


def test_in_half_the_memory_lora_is_trained_as_it_is(model: str) -> None:
    backbone = made(model, precision="bfloat16")
    update = trained(CohortEngine, recipe_of(backbone), received_of(backbone), LENGTHS).update
    assert all(bool(tensor.isfinite().all() and tensor.any()) for tensor in update.total.values())


@pytest.mark.parametrize("engine", [CohortEngine, OracleEngine])
def test_who_has_every_item_learns_too_for_nothing_is_drawn(model: str, engine: type[Engine]) -> None:
    backbone = made(model)
    update = trained(engine, recipe_of(backbone), received_of(backbone), [ITEMS]).update
    assert (update.users, update.dropped["no_negatives"]) == (1, 0)


def test_a_user_whose_loss_is_not_finite_is_left_out_and_counted(model: str) -> None:
    backbone = made(model)
    received = received_of(backbone)
    name = next(iter(received.trainable))
    broken = GlobalModel(
        received.model, received.trainable | {name: received.trainable[name] * torch.nan}, received.frozen
    )
    update = trained(CohortEngine, recipe_of(backbone), broken, LENGTHS).update
    assert update.dropped["non_finite"] == len(LENGTHS)
    assert update.weight == 0


def tensors_of(causal: Causal) -> Tensors:
    rng = generator(3)
    return {name: torch.randn(entry.shape, generator=rng) / 3 for name, entry in causal.tensors.items()}


def with_lora(of: Tiny, tensors: Tensors, dtype: torch.dtype) -> nn.Module:
    """The model as `peft` has it, with these tensors put in by its own names."""
    plain = copy.deepcopy(of.model).to(dtype)
    LORA.put_into(plain)
    for name, parameter in plain.named_parameters():
        if ".lora_" in name:
            short = name.replace("model.layers", "layer").replace("lora_", "").replace(".default.weight", "")
            parameter.data.copy_(tensors[short])
    return plain


def test_the_loss_is_that_of_transformers_on_the_tokens_of_the_title(writer: Tiny) -> None:
    causal = read_causal(writer.folder, LORA, torch.float32, torch.device("cpu"))
    tensors = {name: tensor.requires_grad_() for name, tensor in tensors_of(causal).items()}
    prompt, title = torch.tensor([2, 9, 14, 30, 5, 6, 30]), torch.tensor([11, 12, 30])
    loss = causal.surprise(tensors, prompt, title)
    plain = with_lora(writer, {name: tensor.detach() for name, tensor in tensors.items()}, torch.float32)
    labels = torch.cat([torch.full_like(prompt, -100), title])
    expected = plain(input_ids=torch.cat([prompt, title])[None], labels=labels[None]).loss
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    expected.backward()
    found = dict(zip(tensors, torch.autograd.grad(loss, list(tensors.values())), strict=True))
    for name, parameter in plain.named_parameters():
        if ".lora_" in name:
            short = name.replace("model.layers", "layer").replace("lora_", "").replace(".default.weight", "")
            torch.testing.assert_close(found[short], parameter.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("longest", [1, 12])
def test_what_is_written_is_what_transformers_generates_greedily(writer: Tiny, longest: int) -> None:
    causal = read_causal(writer.folder, LORA, torch.float64, torch.device("cpu"))
    tensors = {name: tensor.double() for name, tensor in tensors_of(causal).items()}
    plain: Any = with_lora(writer, tensors, torch.float64)
    lengths = set()
    for seed in range(8):
        prompt = torch.randint(4, 31, (9,), generator=generator(seed))
        written = causal.write(tensors, prompt, longest, 30)
        given = {"max_new_tokens": longest, "do_sample": False, "eos_token_id": 30, "pad_token_id": 0}
        expected = plain.generate(prompt[None], **given)[0, len(prompt) :]
        assert written.tolist() == [token for token in expected.tolist() if token != 30]
        lengths.add(len(written))
        end = int(written[-1])
        assert causal.write(tensors, prompt, longest, end).tolist() == written[: written.tolist().index(end)].tolist()
    assert max(lengths) == longest


def test_an_untrained_vector_reads_no_lora(writer: Tiny) -> None:
    causal, bare = (read_causal(writer.folder, lora, torch.float64, torch.device("cpu")) for lora in (LORA, None))
    text = torch.tensor([2, 8, 7, 6])
    hidden = writer.model.base_model(input_ids=text[None]).last_hidden_state[0]  # type: ignore[operator]
    for pooling, pooled in (("mean", hidden.mean(0)), ("last", hidden[-1])):
        expected = pooled / pooled.norm()
        for each in (causal, bare):
            torch.testing.assert_close(each.vector(text, pooling), expected)  # type: ignore[arg-type]


def test_a_title_that_is_written_word_for_word_is_its_items_own_vector(model: str) -> None:
    backbone = made(model)
    tokens = backbone.init_texts(TEXTS)["tokens"]
    member = load_member("encoder", "language_model", model=model, item_tokens=8, pooling="mean", precision="float32")
    vectors = torch.from_numpy(encoders.get("language_model")(member).encode(TEXTS, lambda *_: None))
    assert not vectors[2].any(), "it has no text"
    for item in (0, 1, 3, 4, 5):
        title = tokens[item][tokens[item] >= 0].long()
        backbone.written = lambda *_, title=title: title  # type: ignore[method-assign]
        shared = backbone.init_shared(generator(0))
        user = backbone.user(shared, {}, {"tokens": tokens}, PlainHistory(torch.tensor([[0]]), torch.zeros(1, 1, DIM)))
        assert torch.equal(user["state"][0], vectors[item])
        scores = -(user["state"][0] - vectors).square().sum(-1)
        scores[2] = -4
        torch.testing.assert_close(backbone.score(shared, user, vectors, None)[0], scores)  # type: ignore[arg-type]
        assert int(scores.argmax()) == item
    empty = backbone.score(shared, user, vectors, None)[0]  # type: ignore[arg-type]
    assert int(empty.argmin()) == 2, "an item without text is as far away as can be"


def test_a_prompt_lists_the_latest_titles_and_cuts_off_the_oldest() -> None:
    prompt = Prompt(torch.tensor([2, 40]), torch.tensor([41]), 30, 0)
    rows = torch.tensor([[4, 5, -1], [-1, -1, -1], [6, 7, 8]], dtype=torch.int32)
    assert listed(rows, prompt, 60).tolist() == [2, 40, 4, 5, 30, 30, 6, 7, 8, 30, 41]
    assert listed(rows, prompt, 8).tolist() == [2, 40, 30, 6, 7, 8, 30, 41]
    assert listed(rows[:0], prompt, 8).tolist() == [2, 40, 41]
    bare = Prompt(torch.tensor([], dtype=torch.int64), torch.tensor([], dtype=torch.int64), 30, 7)
    assert listed(rows[:0], bare, 8).tolist() == [7], "no prompt is empty"


def test_a_prompt_has_the_words_and_what_the_model_wants_before_a_text(model: str) -> None:
    prompt = prompt_of(model, "ab\n", "c")
    assert (prompt.opening.tolist(), prompt.closing.tolist(), prompt.line) == ([2, 4, 5, 30], [6], 30)


def test_lora_has_the_names_and_shapes_that_are_told(model: str, tmp_path: Path) -> None:
    causal = read_causal(tmp_path / "model", LORA, torch.float32, torch.device("cpu"))
    assert dict(causal.tensors) == dict(lora_spec(model, LORA))


def test_weights_without_a_head_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FedrecError, match=r"the weights lack 1 tensors of LlamaForCausalLM: \['lm_head.weight'\]"):
        read_causal(tiny("llama", tmp_path / "bare").folder, None, torch.float32, torch.device("cpu"))


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose(["experiment=title_generator", "base_table.dim=8", *overrides], base=None)
    return list(caught.value.problems)


def test_what_does_not_fit_is_said_all_at_once(model: str) -> None:
    found = problems(
        f"backbone.model={model}",
        "backbone.length=40",
        "embedding=lora",
        "encoder.precision=bfloat16",
        "base_table.norm=2",
        "reduction=pca",
        "optim.loss=softmax",
    )
    for part in (
        "backbone.length=40: the prompt's own words take 40 tokens",
        "embedding=lora: backbone=title_generator looks written titles up",
        "encoder=language_model: what backbone=title_generator writes",
        "reduction=pca: backbone=title_generator compares vectors",
        "base_table.norm=2: distances are of vectors of length one",
        "optim.loss=softmax: backbone=title_generator is trained by a loss of its own",
    ):
        assert any(part in problem for problem in found), (part, found)
    assert any("optim.negatives=0" in problem for problem in found)
    assert len(found) == 7


def test_recipes_that_score_and_twins_of_no_rows_are_refused(model: str) -> None:
    # What stands beside them in the experiment belongs to its recipe, and is named as well.
    assert any("trained by a loss of its own" in p for p in refusals(model))
    found = problems(f"backbone.model={model}", "backbone.length=64", "privacy=pseudo_items")
    assert any("privacy=pseudo_items: with embedding=fixed no row of an item" in problem for problem in found)


def refusals(model: str) -> list[str]:
    recipe: Recipe = optims.get("paper")(load_member("optim", "paper"), TitleGenerator.advice)
    return recipe.refusals(made(model))


def test_a_loss_of_its_own_is_for_who_has_one() -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["optim=fast", "optim.loss=own", "optim.negatives=5"], base=None)
    assert any("has no loss of its own" in problem for problem in caught.value.problems)
    assert any("optim.negatives=5: a backbone's own loss reads no negatives" in p for p in caught.value.problems)


def test_a_model_that_reads_both_ways_cannot_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDREC_HOME", str(tmp_path / "home"))
    digest = register(tiny("bert", tmp_path / "model", DIM).folder)
    (found,) = problems(f"backbone.model={digest}", "backbone.modules=[query,value]", "backbone.length=64")
    assert "a model of the type bert reads a text in both directions" in found


def test_what_only_writes_is_told_from_what_reads_both_ways(tmp_path: Path) -> None:
    for kind, can in (("gpt_neox", True), ("gpt2", True), ("llama", True), ("bert", False), ("roberta", False)):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        assert (problem_of(tmp_path) is None) == can, kind


def test_a_tokenizer_of_another_model_is_refused(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedrec.backbones.text.most_token", lambda _: 50)
    found = problems(f"backbone.model={model}", "backbone.length=64")
    assert any("its tokenizer has the token 50, and the model itself 50 of them" in problem for problem in found)


def states(backbone: TitleGenerator, received: GlobalModel, items: Tensor) -> Tensor:
    shared, frozen = received.model.shared(received.trainable), received.model.of_backbone(received.frozen)
    return backbone.user(shared, {}, frozen, PlainHistory(items, torch.zeros(*items.shape, DIM)))["state"]


def test_a_users_vector_is_the_same_to_the_bit_in_any_company(model: str) -> None:
    backbone = made(model)
    received, items = received_of(backbone), torch.tensor([[3, 4, 5], [7, 1, 30], [3, 4, 5]])
    together = states(backbone, received, items)
    assert torch.equal(together[0], together[2])
    for user in range(3):
        assert torch.equal(states(backbone, received, items[user]), together[user])
