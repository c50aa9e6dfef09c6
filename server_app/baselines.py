"""Baselines beside a simulated run: they need everybody's interactions in one place, as only a simulation has them."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from fedrec.baselines import SampledRanking, baseline_metrics
from fedrec.data.split import HeldOut
from fedrec.data.types import Dataset
from fedrec.keys import opaque_keys, simulation_secret
from fedrec.protocol import Setup
from fedrec.rng import derive
from peft_embeddings.encoders.base import TextVectors

log = logging.getLogger("fedrec")

_LARGEST = 2**30
"""Numbers in a dense matrix of text vectors: 4 GiB."""


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
    return baseline_metrics(dataset.interactions, dataset.eligible, _dense(vectors), split, setup.ks, sampled)


def _dense(vectors: TextVectors | None) -> NDArray[np.float32] | None:
    if vectors is None or isinstance(vectors, np.ndarray):
        return vectors
    rows, width = vectors.shape
    if rows * width > _LARGEST:
        log.warning(
            "the content baselines are left out: %d x %d text vectors are too many to compare densely", rows, width
        )
        return None
    dense: NDArray[np.float32] = vectors.toarray()
    return dense
