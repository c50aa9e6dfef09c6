"""The local optimisers as plain element-wise functions, so that one call moves the private copies of a whole cohort."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.adam import adam

from fedrec.optim.base import Adam, LocalOptimiser


class LocalState:
    """One optimiser's state over one tensor: it starts at zero, and lives for the steps of one round.

    A tensor whose gradients so far were zero may be left out until its first other one: `taken` is the number of steps
    that it has missed.

    Adam is the framework's own (Kingma and Ba, ICLR 2015, algorithm 1), in its fused form: one pass over the numbers.
    """

    def __init__(self, optimiser: LocalOptimiser, tensor: Tensor, taken: int = 0) -> None:
        self._optimiser = optimiser
        if isinstance(optimiser, Adam):
            self._steps = torch.tensor(float(taken), device=tensor.device)
            self._mean = torch.zeros_like(tensor)
            self._square = torch.zeros_like(tensor)

    def step(self, tensor: Tensor, gradient: Tensor) -> None:
        """Move `tensor` in place by one step along `gradient`."""
        rule = self._optimiser
        if not isinstance(rule, Adam):
            if rule.weight_decay:
                gradient = gradient.add(tensor, alpha=rule.weight_decay)
            tensor.sub_(gradient, alpha=rule.lr)
            return
        adam(
            [tensor],
            [gradient],
            [self._mean],
            [self._square],
            [],
            [self._steps],
            fused=True,
            amsgrad=False,
            beta1=rule.beta1,
            beta2=rule.beta2,
            lr=rule.lr,
            weight_decay=rule.weight_decay,
            eps=rule.eps,
            maximize=False,
        )
