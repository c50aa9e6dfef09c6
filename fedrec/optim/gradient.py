"""One step of plain gradient descent, where the gradients of what was made of the tensors come from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedrec.core.tensors import Tensors
from fedrec.optim.base import Recipe, Sgd


def copies(tensors: Tensors) -> Tensors:
    """Copies that want a gradient."""
    return {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}


def descended(
    tensors: Tensors, outputs: Sequence[Tensor], gradients: Sequence[Tensor], contexts: int, step: Sgd
) -> Tensors:
    """The changes of tensors by a step against the mean over contexts of the gradient.

    Args:
        tensors: What outputs were made of, as `copies` has it; it is changed.
        outputs: One of each context.
        gradients: Of each.
        contexts: How many there are.
        step: Its learning rate, and decay.
    """
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    torch.autograd.backward(list(outputs), list(gradients))
    for tensor in tensors.values():
        if tensor.grad is not None:
            tensor.grad /= contexts
    torch.optim.SGD(list(tensors.values()), lr=step.lr, weight_decay=step.weight_decay).step()
    return {name: tensor.detach() - before[name] for name, tensor in tensors.items()}


def single_step(recipe: Recipe) -> Sgd | None:
    """The one step of plain gradient descent by which a recipe moves what is shared; None: it does so in other ways."""
    shared = [step for step in recipe.local_steps() if step.shared]
    if len(shared) == 1 and not shared[0].private and isinstance(shared[0].optimiser, Sgd):
        return shared[0].optimiser
    return None
