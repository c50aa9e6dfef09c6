"""Means of the latest items whose weights fall with the distance, and are learned."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_LEAST = 1e-3
"""Added to the sum of the weights: the mean of very little is little."""


def distances(n: int, device: torch.device) -> Tensor:
    """int64 [n, n]: how many items before item p (rows) item k (columns) is; negative for what comes after it."""
    place = torch.arange(n, device=device)
    return place.unsqueeze(1) - place


def by_distance(values: Tensor, distance: Tensor, beyond: float) -> Tensor:
    """Of values [..., length] one for each distance [n, n]: [..., n, n], and `beyond` where there is none."""
    length = values.shape[-1]
    found = values.index_select(-1, distance.clamp(0, length - 1).flatten()).reshape(
        *values.shape[:-1], *distance.shape
    )
    return found.masked_fill((distance < 0) | (distance >= length), beyond)


def half_lives(lives: Sequence[float], length: int) -> Tensor:
    """Logarithms of weights [len(lives), length] that halve with every so many items."""
    rates = torch.tensor([math.log(2) / life for life in lives])
    return -rates.unsqueeze(1) * torch.arange(length)


def decaying_means(log_weights: Tensor, vectors: Tensor) -> Tensor:
    """Means [..., means, n, width] of the items up to each of n, weighed by their distance.

    Args:
        log_weights: [..., means, length], by distance; what is farther away weighs nothing.
        vectors: [..., n, width].
    """
    distance = distances(vectors.shape[-2], vectors.device)
    weights = by_distance(log_weights, distance, -math.inf).exp()
    return (weights @ vectors.unsqueeze(-3)) / (weights.sum(-1, keepdim=True) + _LEAST)
