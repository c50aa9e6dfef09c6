"""Losses over the scores of positives and negatives, averaged over each user's real pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import softplus

_LEAST = 1e-6

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def weighted_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean [...] of values [..., pairs] by the weights `mask` [..., pairs]."""
    return (values * mask).sum(-1) / mask.sum(-1)


def recency(later: Tensor, half_life: float) -> Tensor:
    """Weights of interactions with so many `later` ones in their user's history: 2^(-later / half_life).

    None is below a millionth: no part of a long history weighs nothing.
    """
    return torch.exp2(-later / half_life).clamp(min=_LEAST)


def bpr(positive: Tensor, negative: Tensor, mask: Tensor) -> Tensor:
    """Bayesian personalised ranking (Rendle et al., UAI 2009): mean over pairs of -log sigmoid(s+ - s-)."""
    return weighted_mean(softplus(negative - positive.unsqueeze(-1)).mean(-1), mask)


def bce(positive: Tensor, negative: Tensor, mask: Tensor) -> Tensor:
    """Binary cross-entropy: each pair's positive is labelled 1 and its q negatives 0; the mean over all of them."""
    total = softplus(-positive) + softplus(negative).sum(-1)
    return weighted_mean(total / (1 + negative.shape[-1]), mask)


def softmax(positive: Tensor, negative: Tensor, mask: Tensor) -> Tensor:
    """Sampled softmax (Jean et al., ACL 2015): mean over pairs of -log of the positive's share against its q negatives.

    Negatives are drawn evenly, so that no correction for their probability is needed.
    """
    return weighted_mean(softplus(negative.logsumexp(-1) - positive), mask)


LOSSES: Mapping[str, Loss] = {"bpr": bpr, "bce": bce, "softmax": softmax}
