"""Several prefixes of a user's history, to each of which what is private is fitted, and one update of them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from client_app.homes.users import Cohort
from client_app.training.cohort import CohortEngine
from client_app.training.contexts import Reading, reading
from client_app.training.engine import Engine, GlobalModel
from client_app.training.history import SegmentedHistory
from client_app.training.oracle import OracleEngine
from client_app.training.segments import Segments
from federation.uplink import most_changed
from fedrec.config.compose import compose
from fedrec.config.describe import load_member
from fedrec.core import registry
from fedrec.core.errors import ConfigError
from fedrec.core.rng import generator
from fedrec.core.tensors import Tensors
from fedrec.data.negatives import NegativeSampler
from fedrec.optim.base import Adam, Contexts, LocalStep, Recipe
from fedrec.optim.losses import LOSSES
from fedrec.privacy.none import NoPrivacy, NoPrivacyConfig
from fedrec.stages.chain import Stages, plain_stages
from fedrec.stages.limits import Limits
from peft_embeddings.model import Model

ITEMS, DIM, LENGTHS = 60, 6, [7, 1, 19, 41, 2, 5]
ANEW = {"private_anew": True, "private_steps": 2, "negatives": 8, "half_life": 2.0, "shared_half_life": 5.0}
TEN = {"context_length": 6, "context_span": 10, "context_ahead": 2}


@dataclass
class Both(Recipe):
    """Steps that move everything, in contexts."""

    fresh: bool
    shared: bool

    @property
    def negatives(self) -> int:
        return 2

    @property
    def shared_negatives(self) -> bool:
        return self.shared

    @property
    def fresh_negatives(self) -> bool:
        return self.fresh

    @property
    def contexts(self) -> Contexts:
        return Contexts(3, 6, 10, 2)

    def local_steps(self) -> Sequence[LocalStep]:
        return [LocalStep(True, False, Adam(0.02), 3.0), *[LocalStep(True, True, Adam(0.01))] * 2]

    def solve_steps(self) -> Sequence[LocalStep]:
        return []

    def loss(self, positive: Tensor, negative: Tensor, mask: Tensor) -> Tensor:
        return LOSSES["bce"](positive, negative, mask)

    def server_update(self, model: Tensors, mean_delta: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        raise AssertionError("no server here")


def cohort_of(lengths: Sequence[int]) -> Cohort:
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    items = np.concatenate([rng.permutation(ITEMS)[:length] for length in lengths]).astype(np.int64)
    return Cohort(rng.integers(0, 2**63, len(lengths)).astype(np.uint64), offsets, items)


def recipe_of(contexts: int, backbone: Any, **values: Any) -> Any:
    return registry.optims.get("fast")(
        load_member("optim", "fast", **{**ANEW, **TEN, "contexts": contexts, **values}), backbone.advice
    )


def received_of(embedding: str, backbone: str, **values: Any) -> GlobalModel:
    made = registry.backbones.get(backbone)(load_member("backbone", backbone, **values), DIM)
    model = Model(registry.embeddings.get(embedding)(load_member("embedding", embedding), ITEMS, DIM), made)
    rng = generator(3)
    counts = torch.arange(ITEMS) % 5.0
    trainable, frozen = model.init(torch.randn(ITEMS, DIM, generator=rng), made.init_shared(rng), rng, counts=counts)
    moved = {n: (t + 0.1 * torch.randn(t.shape, generator=rng)).double() for n, t in trainable.items()}
    return GlobalModel(model, moved, {n: t.double() if t.is_floating_point() else t for n, t in frozen.items()})


def trained(kind: type[Engine], recipe: Recipe, model: GlobalModel, cohort: Cohort, **named: Any) -> Any:
    stages, seed = named.pop("stages", None) or plain_stages(Limits(100, 1e9)), named.pop("seed", 5)
    private = {n: t.double() for n, t in model.model.backbone.init_private(1, cohort.keys).items()}
    return kind(recipe, NegativeSampler(np.arange(ITEMS)), stages, **named).train(model, cohort, private, seed)


def assert_engines_agree(recipe: Recipe, model: GlobalModel, **named: Any) -> None:
    cohort = cohort_of(LENGTHS)
    slow, fast = (trained(kind, recipe, model, cohort, **named) for kind in (OracleEngine, CohortEngine))
    torch.testing.assert_close(fast.update.total, slow.update.total, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(fast.private, slow.private, atol=1e-9, rtol=1e-9)
    assert fast.update.loss == pytest.approx(slow.update.loss)
    assert fast.update.examples == slow.update.examples == sum(LENGTHS)
    assert fast.update.weight == slow.update.weight == sum(LENGTHS), "a user counts its whole history"


def runs_of(read: Reading, user: int) -> list[tuple[list[int], int]]:
    """Items of each run of a user, and how many of them are fitted."""
    rows = range(user * read.contexts, (user + 1) * read.contexts)
    return [(read.runs.part(row, row + 1).items.tolist(), int(read.fitted[row])) for row in rows]


def test_prefixes_end_in_each_part_of_the_last_items_and_are_followed_by_what_came_next() -> None:
    cohort, count, length, span, ahead = cohort_of(LENGTHS), 4, 6, 10, 2
    backbone = received_of("full", "fedmf").model.backbone
    ends: dict[tuple[int, int], set[int]] = {}
    for seed in range(200):
        read = reading(cohort, recipe_of(count, backbone), seed)
        assert len(read.runs) == count * len(cohort)
        assert len(set(read.runs.keys.tolist())) == len(read.runs), "each has draws of its own"
        for user, n in enumerate(LENGTHS):
            history = cohort.part(user, user + 1).items.tolist()
            before = 0
            for number, (items, fitted) in enumerate(runs_of(read, user)):
                end = history.index(items[0]) + fitted
                assert items == history[max(0, end - length) : end + ahead]
                assert 1 <= fitted <= length
                assert max(min(3, n), n - span, before) <= end <= n
                ends.setdefault((user, number), set()).add(end)
                before = end
    assert ends[2, 0] | ends[2, 1] | ends[2, 2] | ends[2, 3] == set(range(9, 20))
    assert ends[2, 0] == {9, 10, 11}, "the first of the ends lies in the first quarter"
    beside = reading(cohort.select(np.array([3, 0])), recipe_of(count, backbone), 7)
    together = reading(cohort, recipe_of(count, backbone), 7)
    assert [runs_of(beside, user) for user in (0, 1)] == [runs_of(together, user) for user in (3, 0)]
    picked = together.select(np.array([3, 0]))
    assert [runs_of(picked, user) for user in (0, 1)] == [runs_of(together, user) for user in (3, 0)]
    assert np.array_equal(picked.offsets, beside.offsets)


def test_where_every_prefix_is_the_whole_history_contexts_change_nothing() -> None:
    """Their gradients are alike, and it is their mean that counts."""
    model, cohort = received_of("full", "fedmf"), cohort_of([1, 3, 2, 3])
    one, many = (trained(CohortEngine, recipe_of(contexts, model.model.backbone), model, cohort) for contexts in (1, 5))
    torch.testing.assert_close(many.update.total, one.update.total, atol=1e-12, rtol=1e-12)
    assert one.update.total["embedding.items"].any()
    torch.testing.assert_close(many.private, one.private, atol=1e-12, rtol=1e-12)


def test_what_follows_a_prefix_is_predicted_and_not_fitted() -> None:
    """Items after its end get a gradient, and in another order they change no private tensor."""
    model, cohort = received_of("full", "fedmf"), cohort_of([30])
    recipe = recipe_of(2, model.model.backbone)
    drawn = ((seed, *runs_of(reading(cohort, recipe, seed), 0)[-1]) for seed in range(20))
    seed, last, fitted = next((seed, items, n) for seed, items, n in drawn if len(items) - n == 2)
    end = cohort.items.tolist().index(last[fitted])
    turned = Cohort(cohort.keys, cohort.offsets, np.concatenate([cohort.items[:end], cohort.items[: end - 1 : -1]]))
    first, second = (trained(CohortEngine, recipe, model, each, seed=seed) for each in (cohort, turned))
    assert torch.equal(first.private["user"], second.private["user"])
    assert not torch.equal(first.update.total["embedding.items"], second.update.total["embedding.items"])
    moved = set(torch.nonzero(first.update.total["embedding.items"].any(1)).flatten().tolist())
    assert set(last) <= moved


@pytest.mark.parametrize("shared_negatives", [True, False])
@pytest.mark.parametrize("backbone", ["fedmf", "fedncf", "pfedrec", "fedpergnn"])
@pytest.mark.parametrize("embedding", ["full", "lora", "hash_senet"])
def test_equals_the_oracle(embedding: str, backbone: str, shared_negatives: bool) -> None:
    model = received_of(embedding, backbone, **({"dropout": 0.3} if backbone in ("fedncf", "pfedrec") else {}))
    values = {"loss": model.model.backbone.advice.loss, "fresh_negatives": backbone == "fedmf"}
    recipe = recipe_of(3, model.model.backbone, shared_negatives=shared_negatives, **values)
    assert_engines_agree(recipe, model, **({"pairs_at_once": 40} if backbone == "fedpergnn" else {}))


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_equals_the_oracle_where_a_step_moves_everything(shared: bool, fresh: bool) -> None:
    model = received_of("lora", "fedncf")
    assert_engines_agree(Both(fresh, shared), model)


@pytest.mark.parametrize("privacy", ["central_gaussian", "pseudo_items"])
def test_equals_the_oracle_through_the_stages(privacy: str) -> None:
    """The mean of the contexts is what is clipped, and a lone user comes to the same in any company."""
    model, cohort = received_of("full", "fedmf"), cohort_of(LENGTHS)
    made = registry.privacies.get(privacy)(load_member("privacy", privacy))
    codec = registry.codecs.get("int8")(load_member("codec", "int8"))
    recipe = recipe_of(3, model.model.backbone)
    slow, fast = (
        trained(kind, recipe, model, cohort, stages=Stages([made], codec, Limits(1, 1e9)))
        for kind in (OracleEngine, CohortEngine)
    )
    torch.testing.assert_close(
        {n: t.double() for n, t in fast.update.total.items()},
        {n: t.double() for n, t in slow.update.total.items()},
        atol=1e-9,
        rtol=1e-6,
    )
    assert fast.update.weight == len(cohort), "a cap of one makes weights uniform"


def test_a_user_alone_trains_as_it_does_in_a_crowd() -> None:
    model, cohort = received_of("full", "fedmf"), cohort_of(LENGTHS)
    recipe = recipe_of(4, model.model.backbone)
    crowd = trained(CohortEngine, recipe, model, cohort)
    total = torch.zeros_like(crowd.update.total["embedding.items"])
    for user in range(len(cohort)):
        alone = trained(CohortEngine, recipe, model, cohort.part(user, user + 1))
        total += alone.update.total["embedding.items"]
        torch.testing.assert_close(alone.private["user"][0], crowd.private["user"][user], atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(total, crowd.update.total["embedding.items"], atol=1e-9, rtol=1e-9)


def test_a_history_is_the_prefix_alone() -> None:
    """As sums and in order."""
    runs = cohort_of([4, 6, 6, 1])
    fitted = torch.tensor([2, 6, 3, 1])
    cut = Segments.of(runs, 1, DIM, torch.float64, torch.device("cpu"), 6).shared_out(2)
    part = cut.beginnings(fitted)
    items = cut.fill(torch.from_numpy(runs.items))
    vectors = torch.randn(ITEMS, DIM, generator=generator(1), dtype=torch.float64)
    history = SegmentedHistory(items, vectors[items], part, 4)
    assert history.length.tolist() == fitted.tolist()
    for length in (None, 2):
        read = history.sequence(length)
        for row, n in enumerate(fitted.tolist()):
            own = torch.from_numpy(runs.part(row, row + 1).items[:n])
            torch.testing.assert_close(history.sum()[row], vectors[own].sum(0))
            assert read.items[row][read.mask[row]].tolist() == own[-(length or n) :].tolist()
            torch.testing.assert_close(read.vectors[row][read.mask[row]], vectors[own[-(length or n) :]])


def test_one_context_is_told_to_nobody() -> None:
    """So that setups of runs without are what they were, byte for byte."""
    told = [load_member("optim", "fast", **{**ANEW, "contexts": contexts}).told() for contexts in (1, 2)]
    assert told[1].keys() - told[0].keys() == {"contexts", "context_length", "context_span", "context_ahead"}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["backbone=sasrec"], r"backbone=sasrec scores every item .* by what came before it already"),
        (["optim.private_anew=false"], r"none of them are the user's to go on with; give optim\.private_anew=true"),
        (["optim.private_steps=0"], r"nothing is fitted to a prefix with optim\.private_steps=0"),
        (["optim.window=20"], r"give optim\.window=null, and optim\.context_length"),
        (["optim.contexts=65"], r"optim\.contexts=65: expected"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_reason(overrides: list[str], said: str) -> None:
    given = {
        "optim": "optim=fast",
        "optim.contexts": "optim.contexts=8",
        "optim.private_anew": "optim.private_anew=true",
    }
    assert compose(list(given.values()), base=Path("/"))
    given |= {text.partition("=")[0]: text for text in overrides}
    with pytest.raises(ConfigError, match=said):
        compose(list(given.values()), base=Path("/"))


def test_the_rows_that_a_user_changes_are_bounded_beforehand() -> None:
    model = received_of("full", "fedmf").model
    nothing = NoPrivacy(NoPrivacyConfig("none"))
    for contexts, items in ((2, 2 * (6 + 2)), (5, 10 + 6 + 2)):
        recipe = recipe_of(contexts, model.backbone)
        assert most_changed(model, recipe, nothing) == {"embedding.items": items + 8}
