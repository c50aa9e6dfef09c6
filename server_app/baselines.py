"""Baselines beside a simulated run: they need everybody's interactions in one place, as only a simulation has them."""

from __future__ import annotations

import numpy as np

from federation.rival import Rival
from fedrec.core.keys import opaque_keys, simulation_secret
from fedrec.core.rng import derive
from fedrec.data.split import HeldOut
from fedrec.data.types import Dataset
from fedrec.evaluation.baselines import BaselineResults, SampledRanking, baseline_results
from fedrec.evaluation.compared_by import curve_metric
from fedrec.wire.protocol import Setup
from peft_embeddings.encoders.base import TextVectors


def simulated_baselines(setup: Setup, dataset: Dataset, vectors: TextVectors | None, split: HeldOut) -> BaselineResults:
    """Random, popularity and content baselines on the same users, candidates and sampled negatives as the model.

    Without text vectors there are no content baselines.
    """
    sampled = None
    if setup.sampled_negatives:
        keys = opaque_keys(simulation_secret(setup.seed), dataset.interactions.user_ids)
        sampled = SampledRanking(setup.sampled_negatives, derive(setup.seed, "sampled", split), keys)
    return baseline_results(dataset.interactions, dataset.eligible, vectors, split, setup.ks, sampled)


def best_of(results: BaselineResults, setup: Setup, dataset: Dataset) -> Rival:
    """The best of them, with the results of users by the keys under which the server knows them."""
    name = max(results.means, key=lambda each: results.means[each][curve_metric(results.means[each])])
    keys = opaque_keys(simulation_secret(setup.seed), [dataset.interactions.user_ids[user] for user in results.users])
    order = np.argsort(keys)
    return Rival(name, keys[order], results.each[name][order])
