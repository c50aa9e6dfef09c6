"""The server's part of a split model: hidden states through its middle, and gradients back.

Each history goes through by itself, so that nothing depends on who else is on a node. What the way forward needed is
not kept until the gradients come, but worked out again: it is some fifty times as much as the hidden states themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from federation.group_models import GroupModels
from fedrec.backbones.split import Split
from fedrec.core.tensors import Tensors
from fedrec.optim.base import Sgd
from fedrec.optim.gradient import copies, descended


def through(split: Split, middle: Tensors, hidden: Sequence[Tensor]) -> list[Tensor]:
    """Hidden states [states, width] above the middle, of each of those below it; of none, none."""
    with torch.no_grad():
        return [split.between(middle, tensor).to(tensor.dtype) if len(tensor) else tensor for tensor in hidden]


def back(
    split: Split,
    middle: Tensors,
    hidden: Sequence[Tensor],
    gradients: Sequence[Tensor],
    weights: NDArray[np.float64],
    step: Sgd,
) -> tuple[Tensors, list[Tensor]]:
    """The weighted sum of users' changes of the middle, and the gradients of the hidden states below it.

    Args:
        split: The parts of the backbone.
        middle: What is trained of the middle.
        hidden: Below the middle, a tensor [states, width] for each context of each user, one user after the other.
        gradients: Of those above it, alike.
        weights: float64 [users]; who has none is left out, and gets gradients of zero.
        step: What a user's change is.
    """
    contexts = len(hidden) // max(1, len(weights))
    total = {name: torch.zeros_like(tensor) for name, tensor in middle.items()}
    found = [torch.zeros_like(tensor) for tensor in hidden]
    for user in np.flatnonzero(weights).tolist():
        places = range(user * contexts, (user + 1) * contexts)
        own, below = copies(middle), [hidden[place].clone().requires_grad_() for place in places]
        outputs = [split.between(own, tensor) for tensor in below]
        given = [gradients[place].to(output.dtype) for place, output in zip(places, outputs, strict=True)]
        change = descended(own, outputs, given, contexts, step)
        for name, tensor in change.items():
            total[name] += torch.tensor(weights[user]).to(tensor.dtype) * tensor
        for place, tensor in zip(places, below, strict=True):
            if tensor.grad is not None:
                found[place] = tensor.grad
    return total, found


def middle_of(split: Split, models: GroupModels, group: str) -> Tensors:
    """What is trained of the middle of a group's model, as it stands."""
    shared = models.model.shared(models[group].state.trainable)
    return {name: shared[name] for name in split.middle}
