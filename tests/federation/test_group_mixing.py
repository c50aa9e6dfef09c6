"""Whole runs of `strategy=fellrec`: layouts, what pooling is, and silent groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fedrec.core.tensors import Tensors

Federate = Callable[..., Any]

FELLREC = ("strategy=fellrec", "grouping.groups=3")


def models(outcome: Any, round: int | None = None) -> dict[str, Tensors]:
    """The trained part of each group's model after a round."""
    found: dict[str, Tensors] = {group: {} for group in "012"}
    for name, tensor in outcome.checkpoint(round).items():
        if name.startswith("trainable@"):
            group, _, rest = name.removeprefix("trainable@").partition(".")
            found[group][rest] = tensor
    return found


def same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("mixing", ["likeness", "pooled"])
def test_mixed_groups_are_the_same_on_any_layout(federate: Federate, mixing: str) -> None:
    one = federate(*FELLREC, f"strategy.mixing={mixing}", nodes=1)
    for nodes in (2, 7):
        federate(*FELLREC, f"strategy.mixing={mixing}", nodes=nodes).must_equal(one)


def test_groups_that_are_pooled_are_one_model_while_all_take_part(federate: Federate) -> None:
    """The mean of all users' updates and one step: to the rounding what a run without groups does."""
    often = ("federation.fraction=1.0", "embedding=full", "strategy.rounds=3")
    pooled = models(federate(*FELLREC, "strategy.mixing=pooled", *often))
    plain = federate("strategy=full", *often).checkpoint()["trainable.embedding.items"]
    for group in "012":
        torch.testing.assert_close(pooled[group]["embedding.items"], plain, atol=1e-5, rtol=1e-5)
    after_the_step = models(federate(*FELLREC, "strategy.mixing=local", *often))
    assert not torch.allclose(after_the_step["0"]["embedding.items"], plain, atol=1e-3)


@pytest.mark.parametrize("mixing", ["mean", "pooled"])
def test_a_silent_group_keeps_its_model_and_is_mixed_again_when_it_is_back(federate: Federate, mixing: str) -> None:
    """Of two users a round in three groups one is silent at least; those that are not are one model afterwards."""
    few = ("federation.fraction=0.04", "checkpoint_every=1", "checkpoints_kept=20", "strategy.rounds=8")
    outcome = federate(*FELLREC, f"strategy.mixing={mixing}", *few, "embedding=full", "optim=fast")
    was_silent, came_back = set[str](), set[str]()
    for round in range(2, 9):
        before, after = models(outcome, round - 1), models(outcome, round)
        moved = [group for group in "012" if not same(before[group], after[group])]
        assert 1 <= len(moved) <= 2
        if len(moved) == 2:
            first, second = moved
            mine, other = after[first]["embedding.items"], after[second]["embedding.items"]
            if mixing == "mean":
                assert torch.equal(mine, other)
            else:  # one model and one mean; what is left is each group's own moments of the server's optimiser
                apart = torch.dist(before[first]["embedding.items"], before[second]["embedding.items"])
                assert torch.dist(mine, other) < apart
            came_back |= was_silent & set(moved)
        was_silent |= set("012") - set(moved)
    assert came_back
