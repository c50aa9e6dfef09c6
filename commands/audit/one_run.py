"""What one training run shows of its epsilon: a lower bound from guesses about who took part in it.

Steinke, Nasr and Jagielski, "Privacy auditing with one (1) training run" (NeurIPS 2023), theorem 5.2: each of `m`
candidates takes part by a coin of its own, somebody who has seen what was released guesses the coins of some of them,
and says nothing of the others. If the run is (epsilon, delta)-differentially private for adding or removing a user,
the number of right guesses is hardly ever larger than that of as many coins of chance e^epsilon / (1 + e^epsilon).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

CONFIDENCE = 0.95

_SHARES = (0.1, 0.25, 0.5, 1.0)
"""Shares of the candidates who are guessed, those of the most telling scores. Each has its part of the error."""

_MOST = 50.0
_STEPS = 30


class Bound(NamedTuple):
    """What was shown.

    Attributes:
        epsilon: The run is not differentially private for any smaller one, at this confidence; 0: nothing was shown.
        guesses: How many coins were guessed, for the bound.
        right: How many of them rightly.
    """

    epsilon: float
    guesses: int
    right: int


def auc(score: NDArray[np.float64], label: NDArray[np.bool_]) -> float:
    """The chance that a true one has a higher score than another; a tie counts half."""
    _, places, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    true, false = int(label.sum()), int((~label).sum())
    return float((ranks[label].sum() - true * (true + 1) / 2) / (true * false))


def chance(candidates: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """At most how probable so many right guesses are, or more, if the run is (epsilon, delta)-differentially private.

    The guesses are about some of the `candidates`. The term of delta is that of the theorem: delta times the largest
    of 2 m P[right - i <= X < right] / i, over i from 1 to m, where X is the binomial number.
    """
    each = 1 / (1 + math.exp(-epsilon))
    beyond = np.arange(1, right + 1)  # of more than that many nothing is left below
    below = binom.cdf(right - 1, guesses, each) - binom.cdf(right - 1 - beyond, guesses, each)
    largest = float((below / beyond).max()) if right else 0.0
    return min(1.0, float(binom.sf(right - 1, guesses, each)) + 2 * candidates * delta * largest)


def lower_bound(score: NDArray[np.float64], took_part: NDArray[np.bool_], delta: float, scores: int = 1) -> Bound:
    """The best bound that a score of the candidates gives: high ones took part, low ones did not.

    Args:
        score: float64 [candidates].
        took_part: bool [candidates], the coins, each of chance one half.
        delta: Of the promise.
        scores: Of so many scores the bounds hold together, at the confidence of one.
    """
    candidates = len(score)
    order = np.argsort(score, kind="stable")
    found = Bound(0.0, 0, 0)
    for share in _SHARES:
        half = int(share * candidates) // 2
        if half == 0:
            continue
        right = int(took_part[order[-half:]].sum() + (~took_part[order[:half]]).sum())
        error = (1 - CONFIDENCE) / (len(_SHARES) * scores)
        if chance(candidates, 2 * half, right, 0.0, delta) > error:
            continue
        low, high = 0.0, _MOST
        for _ in range(_STEPS):  # the chance rises with epsilon
            middle = (low + high) / 2
            low, high = (middle, high) if chance(candidates, 2 * half, right, middle, delta) <= error else (low, middle)
        if low > found.epsilon:
            found = Bound(low, 2 * half, right)
    return found
