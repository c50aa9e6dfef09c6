"""The local optimisers as plain element-wise functions, so that one call moves the private copies of a whole cohort."""

from __future__ import annotations

from torch import Tensor

from fedrec.optim.base import Adam, LocalOptimiser


class LocalState:
    """One optimiser's state over one tensor: it starts at zero, and lives for the steps of one round.

    Adam is that of Kingma and Ba (ICLR 2015, algorithm 1), in the order of operations of `torch.optim.Adam`.
    """

    def __init__(self, optimiser: LocalOptimiser) -> None:
        self._optimiser = optimiser
        self._steps = 0
        self._mean: Tensor | None = None
        self._square: Tensor | None = None

    def step(self, tensor: Tensor, gradient: Tensor) -> None:
        """Move `tensor` in place by one step along `gradient`."""
        rule = self._optimiser
        if not isinstance(rule, Adam):
            tensor.sub_(gradient, alpha=rule.lr)
            return
        self._steps += 1
        if self._mean is None or self._square is None:
            self._mean = gradient * (1 - rule.beta1)
            self._square = gradient * gradient * (1 - rule.beta2)
        else:
            self._mean.lerp_(gradient, 1 - rule.beta1)
            self._square.mul_(rule.beta2).addcmul_(gradient, gradient, value=1 - rule.beta2)
        scale = rule.lr / (1 - rule.beta1**self._steps)
        root = self._square.sqrt().div_((1 - rule.beta2**self._steps) ** 0.5).add_(rule.eps)
        tensor.addcdiv_(self._mean, root, value=-scale)
