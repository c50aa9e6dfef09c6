"""The metrics of a run's groups in three numbers: their mean, the lowest, and how far they lie apart."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean, pstdev

MEAN, WORST, SPREAD = "mean", "worst", "standard_deviation"


def over_groups(groups: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Of each metric the mean over the groups, whatever their size, the lowest, and the standard deviation.

    Args:
        groups: By name, one or more, the metrics of one split of each group; counts of users among them are left out.
    """
    names = [name for name in next(iter(groups.values())) if "@" in name or name.endswith("mrr")]
    each = {name: [metrics[name] for metrics in groups.values()] for name in names}
    return {name: {MEAN: fmean(found), WORST: min(found), SPREAD: pstdev(found)} for name, found in each.items()}
