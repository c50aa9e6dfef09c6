"""`optim.server.halved_after`: the rate falls with the steps since a phase or a merge began."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

Federate = Callable[..., Any]
FIRST_STEP_ALONE = ("optim=fast", "optim.negatives=20", "optim.server.halved_after=1e-30")
EVERY_ROUND = ("checkpoint_every=1", "checkpoints_kept=7")


def test_a_phase_and_a_merge_begin_with_the_whole_rate(federate: Federate) -> None:
    """With a rate that is gone after one step, only the first round of each moves anything."""
    rounds = ("strategy.rounds=7", "strategy.warmup_rounds=2", "strategy.merge_every=3")
    outcome = federate(*FIRST_STEP_ALONE, *EVERY_ROUND, *rounds, nodes=2)
    trained = [
        {name: tensor for name, tensor in outcome.checkpoint(round).items() if name.startswith("trainable.")}
        for round in range(1, 8)
    ]
    still = [
        before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
        for before, after in pairwise(trained)
    ]
    # From round 2 to 3 the phase changes; after round 5 there is a merge, which round 6 is the first to follow.
    assert still == [True, False, True, False, False, True]
    assert trained[2]["trainable.embedding.B"].any(), "the correction's first round moved nothing"
    assert not trained[4]["trainable.embedding.B"].any(), "the merge left the correction as it was"
    assert trained[5]["trainable.embedding.B"].any(), "the first round after the merge moved nothing"
