"""Training in three stages with the middle elsewhere gives, to the bit, what training the whole model gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client_app.homes.users import Cohort
from client_app.training.engine import GlobalModel
from client_app.training.oracle import OracleEngine
from client_app.training.split import SplitEngine, read_all, states_of_all
from federation.split.middle import back, through
from fedrec.backbones.language_model import LanguageModel
from fedrec.config.describe import load_member
from fedrec.core.registry import embeddings, optims
from fedrec.core.rng import generator
from fedrec.core.tensors import Tensors, spec_of
from fedrec.data.negatives import NegativeSampler
from fedrec.language.models import register
from fedrec.optim.base import Recipe
from fedrec.optim.gradient import single_step
from fedrec.stages.chain import plain_stages
from fedrec.stages.limits import Limits
from fedrec.testing.language import Style, tiny
from peft_embeddings.model import Model

DIM, ITEMS, STEPS = 8, 16, 2
TEXTS = ("a red lamp", "screws", "", "a box of steel screws", "blue paint", "tape")


def backbone_of(style: Style, folder: Path, **values: Any) -> LanguageModel:
    model = tiny(style, folder, DIM)
    digest, modules = register(model.folder), list(model.lora.targets)
    chosen = {"model": digest, "modules": modules, "rank": 2, "precision": "float64", "mean": 0.5, "length": 24}
    return LanguageModel(load_member("backbone", "language_model", **{**chosen, **values}), DIM)


def engine_of(kind: type[OracleEngine], recipe: Recipe) -> Any:
    return kind(recipe, NegativeSampler(np.arange(ITEMS)), plain_stages(Limits(100, 1e9)))


def some_users(lengths: list[int]) -> Cohort:
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    items = np.concatenate([rng.permutation(ITEMS)[:length] for length in lengths]).astype(np.int64)
    return Cohort(rng.integers(0, 2**63, len(lengths)).astype(np.uint64), offsets, items)


def start_of(backbone: LanguageModel) -> tuple[Model, Tensors, Tensors]:
    """A model with a low-rank correction of the item vectors, its trained tensors in float64, and the frozen ones."""
    rng = generator(3)
    model = Model(embeddings.get("lora")(load_member("embedding", "lora"), ITEMS, DIM), backbone)
    texts = backbone.init_texts([TEXTS[item % len(TEXTS)] for item in range(ITEMS)])
    trained, frozen = model.init(torch.randn(ITEMS, DIM, generator=rng), backbone.init_shared(rng), rng, texts=texts)
    moved = {n: (t + 0.1 * torch.randn(t.shape, generator=rng)).double() for n, t in sorted(trained.items())}
    return model, moved, {n: t.double() if t.is_floating_point() else t for n, t in frozen.items()}


def part(tensors: Tensors, names: Any) -> Tensors:
    return {name: tensors[name] for name in names}


def in_stages(
    engine: SplitEngine, model: Model, trained: Tensors, frozen: Tensors, users: Cohort, seed: int
) -> Tensors:
    """The mean over users of a round's changes, with each part of the model only where it is."""
    split, step = model.backbone.split, single_step(engine.recipe)
    assert split is not None
    assert step is not None
    lower = GlobalModel(model, part(trained, model.lower), frozen)
    upper = GlobalModel(model, part(trained, model.upper), frozen)
    middle = part(model.shared(trained), split.middle)
    below = engine.below(lower, users, seed)
    above = through(split, middle, below)
    judged = engine.above(upper, users, above, seed)
    change, gradients = back(split, middle, below, judged.gradients, judged.weights, step)
    under = engine.under(lower, users, gradients, seed) if model.lower else {}
    total = judged.update.total | under | {model.backbone_name(name): tensor for name, tensor in change.items()}
    return {name: tensor / judged.update.weight for name, tensor in total.items()}


@pytest.mark.parametrize(("first", "contexts"), [(0, 1), (1, 3), (2, 1)])
@pytest.mark.parametrize("style", ["bert", "llama"])
def test_the_stages_train_as_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, style: Style, first: int, contexts: int
) -> None:
    monkeypatch.setenv("FEDREC_HOME", str(tmp_path / "home"))
    whole, split = (backbone_of(style, tmp_path / "model", split=layers) for layers in (None, first))
    recipe: Recipe = optims.get("fast")(
        load_member("optim", "fast", negatives=4, contexts=contexts, context_length=5, context_ahead=2), whole.advice
    )
    users = some_users([7, 1, 4, ITEMS])  # the last one knows all items: it has no negatives, and does not count
    (one, own, frozen), (two, there, _) = start_of(whole), start_of(split)
    assert spec_of(own) == spec_of(there)
    assert {*two.lower, *two.upper} == set(two.trainable)
    assert set(two.trained) == set(own) > set(two.trainable)
    states: list[Tensors] = [{}, {}]
    for step in range(STEPS):
        update = engine_of(OracleEngine, recipe).train(GlobalModel(one, own, frozen), users, {}, step).update
        assert update.users == 3
        mean = {name: tensor / update.weight for name, tensor in update.total.items()}
        mean_there = in_stages(engine_of(SplitEngine, recipe), two, there, frozen, users, step)
        own, states[0] = recipe.server_update(own, mean, states[0])
        there, states[1] = recipe.server_update(there, mean_there, states[1])
        assert own.keys() == there.keys()
        for name, tensor in own.items():
            assert torch.equal(mean[name], mean_there[name]), (step, name)
            assert torch.equal(tensor, there[name]), (step, name)
            assert bool(mean[name].any()), (step, name)


def test_states_are_counted_as_they_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDREC_HOME", str(tmp_path / "home"))
    backbone = backbone_of("bert", tmp_path / "model", split=1)
    recipe: Recipe = optims.get("fast")(load_member("optim", "fast", contexts=3), backbone.advice)
    model, trained, frozen = start_of(backbone)
    received, users = GlobalModel(model, trained, frozen), some_users([7, 1, 4, ITEMS])
    engine = engine_of(SplitEngine, recipe)
    made = [len(hidden) for hidden in engine.below(received, users, 5)]
    assert engine.states(received, users, 5) == made
    assert len(set(made)) > 1, "of other lengths"
    assert states_of_all(received, users) == [len(hidden) for hidden in read_all(received, users)]
