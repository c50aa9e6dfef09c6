"""Baselines beside a simulated run: they need everybody's interactions in one place, as only a simulation has them."""

from __future__ import annotations

from fedrec.core.keys import opaque_keys, simulation_secret
from fedrec.core.rng import derive
from fedrec.data.split import HeldOut
from fedrec.data.types import Dataset
from fedrec.evaluation.baselines import SampledRanking, baseline_metrics
from fedrec.wire.protocol import Setup
from peft_embeddings.encoders.base import TextVectors


def simulated_baselines(
    setup: Setup, dataset: Dataset, vectors: TextVectors | None, split: HeldOut
) -> dict[str, dict[str, float]]:
    """Random, popularity and content baselines on the same users, candidates and sampled negatives as the model.

    Without text vectors there are no content baselines.
    """
    sampled = None
    if setup.sampled_negatives:
        keys = opaque_keys(simulation_secret(setup.seed), dataset.interactions.user_ids)
        sampled = SampledRanking(setup.sampled_negatives, derive(setup.seed, "sampled", split), keys)
    return baseline_metrics(dataset.interactions, dataset.eligible, vectors, split, setup.ks, sampled)
