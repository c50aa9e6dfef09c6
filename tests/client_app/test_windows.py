"""What of their histories users train on in a round."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from client_app.homes.users import Cohort
from client_app.training.cohort import CohortEngine
from client_app.training.engine import Engine, GlobalModel
from client_app.training.oracle import OracleEngine
from client_app.training.windows import windows
from fedrec.config.describe import load_member
from fedrec.core import registry
from fedrec.core.rng import generator
from fedrec.data.negatives import NegativeSampler
from fedrec.optim.base import Window
from fedrec.stages.chain import plain_stages
from fedrec.stages.limits import Limits
from peft_embeddings.model import Model

LENGTHS = [7, 1, 19, 30, 2, 5]


def cohort_of(lengths: Sequence[int], seed: int = 0) -> Cohort:
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    items = np.concatenate([rng.permutation(40)[:length] for length in lengths]).astype(np.int64)
    return Cohort(rng.integers(0, 2**63, len(lengths)).astype(np.uint64), offsets, items)


def histories(cohort: Cohort) -> list[list[int]]:
    return [cohort.part(user, user + 1).items.tolist() for user in range(len(cohort))]


def test_without_a_window_all_is_read() -> None:
    cohort = cohort_of(LENGTHS)
    assert windows(cohort, None, 0) is cohort


def test_the_latest_window_is_the_end_of_each_history() -> None:
    cohort = cohort_of(LENGTHS)
    read = windows(cohort, Window(5, "latest"), 0)
    assert histories(read) == [items[-5:] for items in histories(cohort)]
    assert np.array_equal(read.keys, cohort.keys)


def test_a_random_window_is_any_run_of_items_evenly_and_a_function_of_seed_and_user() -> None:
    cohort = cohort_of(LENGTHS)
    starts = np.zeros((len(LENGTHS), 40), dtype=int)
    for seed in range(600):
        read = histories(windows(cohort, Window(5, "random"), seed))
        for user, (own, whole) in enumerate(zip(read, histories(cohort), strict=True)):
            first = whole.index(own[0])
            assert own == whole[first : first + 5]
            starts[user, first] += 1
    for user, length in enumerate(LENGTHS):
        places = max(1, length - 4)
        assert not starts[user, places:].any()
        assert (np.abs(starts[user, :places] - 600 / places) <= 5 * (600 / places) ** 0.5).all()
    beside = windows(cohort.select(np.array([3, 0])), Window(5, "random"), 9)
    together = histories(windows(cohort, Window(5, "random"), 9))
    assert histories(beside) == [together[3], together[0]]


@pytest.mark.parametrize("placement", ["random", "latest"])
@pytest.mark.parametrize("backbone", ["sasrec", "fedmf"])
def test_both_engines_train_on_windows_with_negatives_unknown_to_the_whole_history(
    backbone: str, placement: str
) -> None:
    """And fit what is private to the whole history before a ranking."""
    made = registry.backbones.get(backbone)(load_member("backbone", backbone), 6)
    model = Model(registry.embeddings.get("full")(load_member("embedding", "full"), 40, 6), made)
    rng = generator(0)
    trainable, _ = model.init(torch.randn(40, 6, generator=rng), made.init_shared(rng), rng)
    received = GlobalModel(model, {name: tensor.double() for name, tensor in trainable.items()}, {})
    config = load_member("optim", "fast", window=5, window_placement=placement, negatives=50)
    recipe = registry.optims.get("fast")(config, made.advice)
    kinds: list[type[Engine]] = [OracleEngine, CohortEngine]
    stages = plain_stages(Limits(100, 1e9))
    slow, fast = (kind(recipe, NegativeSampler(np.arange(40)), stages) for kind in kinds)
    cohort = cohort_of(LENGTHS)
    private = {name: tensor.double() for name, tensor in made.init_private(1, cohort.keys).items()}
    one, other = (engine.train(received, cohort, private, seed=5) for engine in (slow, fast))
    torch.testing.assert_close(other.update.total, one.update.total, atol=1e-9, rtol=1e-9)
    assert other.update.examples == one.update.examples == sum(min(5, length) for length in LENGTHS)
    assert other.update.weight == one.update.weight == other.update.examples
    for user in range(len(cohort)):
        alone = fast.train(
            received, cohort.part(user, user + 1), {n: t[user : user + 1] for n, t in private.items()}, 5
        )
        moved = set(torch.nonzero(alone.update.total["embedding.items"].any(1)).flatten().tolist())
        known = set(cohort.part(user, user + 1).items.tolist())
        own = set(windows(cohort, Window(5, placement), 5).part(user, user + 1).items.tolist())  # type: ignore[arg-type]
        assert moved & known <= own
        assert moved - known or (len(known) == 1 and backbone == "sasrec"), "and negatives; an empty state is zero"
    solved, again = (engine.solve(received, cohort, private, seed=5) for engine in (slow, fast))
    torch.testing.assert_close(again, solved, atol=1e-9, rtol=1e-9)
