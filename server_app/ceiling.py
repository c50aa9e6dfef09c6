"""How well the best possible model would rank, where data are made up and so the truth behind them is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import torch

from fedrec.config.schema import RunConfig
from fedrec.core import registry
from fedrec.data.split import evaluated, histories, targets
from fedrec.data.types import Dataset
from fedrec.datasets.base import DatasetConfig
from fedrec.evaluation.compared_by import curve_metric
from fedrec.evaluation.metrics import RankCounter, mean_metrics, metric_sums, ranking_metrics


def ceiling(config: RunConfig, dataset: Dataset, ks: Sequence[int]) -> dict[str, float] | None:
    """Metrics at test of ranking by the probabilities that users' last items were drawn by.

    None if nobody knows them, if the split is by time, or if no list is long enough that anybody's item would be in it.

    The users, candidates and held-out items are those of the model, so chance favours neither.
    """
    truth = registry.datasets.get(config.dataset.name)(cast(DatasetConfig, config.dataset)).last_chances()
    if truth is None or dataset.interactions.cuts is not None:  # known are the chances of users' last items
        return None
    user_at = {label: place for place, label in enumerate(truth.users)}
    item_at = {label: place for place, label in enumerate(truth.items)}
    interactions, eligible = dataset.interactions, dataset.eligible.astype(np.int64)
    ranked = np.flatnonzero(evaluated(interactions, of="test"))
    rows = np.array([user_at[interactions.user_ids[user]] for user in ranked.tolist()])
    columns = np.array([item_at[label] for label in dataset.catalogue.item_ids])
    history = histories(interactions, "test", ranked)
    positive = targets(interactions, "test", ranked).astype(np.int64)
    counter = RankCounter(
        torch.from_numpy(positive),
        torch.from_numpy(truth.chances[rows, columns[positive]]),
        torch.from_numpy(history.offsets),
        torch.from_numpy(history.items.astype(np.int64)),
    )
    counter.add(torch.from_numpy(truth.chances[np.ix_(rows, columns[eligible])]), torch.from_numpy(eligible))
    most = mean_metrics(metric_sums(ranking_metrics(counter.counts(), ks)))
    return most if most[curve_metric(most)] > 0 else None


def share_of_ceiling(test: Mapping[str, float], most: Mapping[str, float]) -> str:
    """The sentence for people: how much of what anybody could reach was reached."""
    metric = curve_metric(most)
    return (
        f"{metric.upper()} is {test[metric] / most[metric]:.0%} of the ceiling, {most[metric]:.4f}, which ranking by "
        "the true probabilities of these made-up data reaches"
    )
