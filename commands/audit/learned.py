"""An attack that learns from users whose items are known how to weigh what is seen of items, and is tried on others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from commands.audit.one_run import auc
from commands.audit.recovery import LAST

_RIDGE = 1e-3
_STEPS = 30
_RESAMPLES = 2000
_SEED = 0
ATTACKS: Mapping[str, Sequence[int]] = {"popularity": (0, 1, 2), "sums": (3, 4, 5, 6), "both": range(7)}
"""By name, the columns of `Case.features` that an attack has: the first three are of what is known of anybody."""


class Case(NamedTuple):
    """An audited user.

    Attributes:
        features: float64 [items, columns], what is known of each item.
        history: int64, its training items, oldest first.
    """

    features: NDArray[np.float64]
    history: NDArray[np.int64]


def attacked(cases: Sequence[Case], *, latest: bool) -> dict[str, Any]:
    """The attacks on the second half of the cases, learned from the first, for a user's items or the latest of them.

    Returns each attack's mean AUC over the attacked users, and the `gain` of both over popularity alone with its 95 %
    `interval` over these users (by resampling them).
    """
    half = len(cases) // 2
    areas = {name: _areas(cases[:half], cases[half:], columns, latest=latest) for name, columns in ATTACKS.items()}
    gains = areas["both"] - areas["popularity"]
    drawn = np.random.default_rng(_SEED).integers(len(gains), size=(_RESAMPLES, len(gains)))
    interval = np.quantile(gains[drawn].mean(1), (0.025, 0.975)).tolist()
    return {
        **{name: float(area.mean()) for name, area in areas.items()},
        "gain": float(gains.mean()),
        "interval": interval,
    }


def _areas(
    known: Sequence[Case], others: Sequence[Case], columns: Sequence[int], *, latest: bool
) -> NDArray[np.float64]:
    """float64 [others]: the area under the ROC curve for each of them."""
    table = np.concatenate([case.features[kept][:, columns] for case in known for kept, _ in [_labels(case, latest)]])
    had = np.concatenate([label for case in known for _, label in [_labels(case, latest)]])
    weights = logistic(table, had)
    found = []
    for case in others:
        kept, label = _labels(case, latest)
        found.append(auc(case.features[kept][:, columns] @ weights[1:], label))
    return np.array(found)


def _labels(case: Case, latest: bool) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which items are asked about, and which of these the user has; of the latest ones the earlier are left out."""
    mine = np.zeros(len(case.features), np.bool_)
    mine[case.history] = True
    if not latest:
        return np.ones_like(mine), mine
    recent = np.zeros_like(mine)
    recent[case.history[-LAST:]] = True
    kept = recent | ~mine
    return kept, recent[kept]


def logistic(table: NDArray[np.float64], label: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The weights [1 + columns] of a logistic regression, the intercept first, by Newton's method."""
    design = np.column_stack([np.ones(len(table)), table])
    weights = np.zeros(design.shape[1])
    for _ in range(_STEPS):
        likely = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        gradient = design.T @ (label - likely) / len(table) - _RIDGE * weights
        curvature = (design * (likely * (1 - likely))[:, None]).T @ design / len(table)
        step = np.linalg.solve(curvature + _RIDGE * np.eye(len(weights)), gradient)
        weights = weights + step
        if np.abs(step).max() < 1e-9:
            break
    return weights
