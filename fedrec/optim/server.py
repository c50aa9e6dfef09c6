"""The server's optimisers: the mean of the users' deltas is taken for a negative gradient.

Source: Reddi et al., Adaptive Federated Optimization (ICLR 2021); Adam with the bias correction of Kingma and Ba (ICLR
2015), as torch has it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor

from fedrec.core.bounds import LARGEST_RATE, LONGEST_HALF_LIFE, MOST_ROUNDS
from fedrec.core.tensors import Tensors


@dataclass(frozen=True)
class ServerOptimiser:
    """Configuration of the server's step.

    Attributes:
        kind: `sgd` (with momentum `beta1`), `adagrad`, `adam` or `yogi`.
        lr: Step size of the first step; with `warm_up`, of the last of those.
        halved_after: Steps after which it is half of that, after twice as many a third, and so on: `lr / (1 + steps /
            halved_after)`. null: it stays. Steps are counted anew where the optimiser starts anew: with a phase, and
            with every merge.
        warm_up: Steps in which the rate rises to `lr`, evenly from `lr / warm_up` (0: none). `halved_after` and
            `cosine` count them too.
        cosine: Steps in which the rate falls along half a cosine to `cosine_floor` of itself, where it stays (null: it
            does not). `${strategy.rounds}` for all rounds of a run of one phase.
        cosine_floor: That share.
        beta1: Decay of the mean of gradients (0 for plain `sgd`; `adagrad` has none).
        beta2: Decay of the mean of squares (`adam`, `yogi`).
        eps: Added to the square root.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid", "strict": True}

    kind: Literal["sgd", "adagrad", "adam", "yogi"]
    lr: Annotated[float, Gt(0), Le(LARGEST_RATE)]
    halved_after: Annotated[float, Gt(0), Le(LONGEST_HALF_LIFE)] | None
    beta1: Annotated[float, Ge(0), Lt(1)]
    beta2: Annotated[float, Ge(0), Lt(1)]
    eps: Annotated[float, Gt(0), Le(LARGEST_RATE)]
    warm_up: Annotated[int, Ge(0), Le(MOST_ROUNDS)] = 0
    cosine: Annotated[int, Ge(1), Le(MOST_ROUNDS)] | None = None
    cosine_floor: Annotated[float, Ge(0), Le(1)] = 0.05

    def told(self) -> dict[str, Any]:
        """As a client is told of it, to which it is all the same: without what is switched off."""
        told = dataclasses.asdict(self)
        if not self.warm_up:
            del told["warm_up"]
        if self.cosine is None:
            del told["cosine"], told["cosine_floor"]
        return told

    def rate(self, taken: int) -> float:
        """The step size when so many steps have been taken."""
        rate = self.lr / (1 + taken / self.halved_after) if self.halved_after else self.lr
        if self.warm_up:
            rate *= min(1.0, (taken + 1) / self.warm_up)
        if self.cosine is not None:
            left = 0.5 * (1 + math.cos(math.pi * min(1.0, taken / self.cosine)))
            rate *= self.cosine_floor + (1 - self.cosine_floor) * left
        return rate


def server_step(rule: ServerOptimiser, model: Tensors, mean_delta: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
    """The next (model, state); nothing given is changed. `state` starts empty: a count, and two moments a tensor."""
    count = state.get("count", torch.zeros((), dtype=torch.int64)) + 1
    lr = rule.rate(int(count) - 1)
    moved: Tensors = {}
    kept: Tensors = {"count": count}
    for name, tensor in model.items():
        gradient = -mean_delta[name]
        first = state.get(f"first.{name}", torch.zeros_like(tensor))
        second = state.get(f"second.{name}", torch.zeros_like(tensor))
        step, first, second = _STEPS[rule.kind](rule, gradient, first, second, int(count))
        moved[name] = tensor - lr * step
        kept |= {f"first.{name}": first, f"second.{name}": second}
    return moved, kept


_Step = Callable[[ServerOptimiser, Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor, Tensor]]


def _sgd(rule: ServerOptimiser, gradient: Tensor, first: Tensor, second: Tensor, count: int) -> Any:
    first = rule.beta1 * first + gradient
    return first, first, second


def _adagrad(rule: ServerOptimiser, gradient: Tensor, first: Tensor, second: Tensor, count: int) -> Any:
    second = second + gradient.square()
    return gradient / (second.sqrt() + rule.eps), first, second


def _adam(rule: ServerOptimiser, gradient: Tensor, first: Tensor, second: Tensor, count: int) -> Any:
    second = rule.beta2 * second + (1 - rule.beta2) * gradient.square()
    return _adaptive(rule, gradient, first, second, count)


def _yogi(rule: ServerOptimiser, gradient: Tensor, first: Tensor, second: Tensor, count: int) -> Any:
    square = gradient.square()
    second = second - (1 - rule.beta2) * square * (second - square).sign()
    return _adaptive(rule, gradient, first, second, count)


def _adaptive(rule: ServerOptimiser, gradient: Tensor, first: Tensor, second: Tensor, count: int) -> Any:
    first = rule.beta1 * first + (1 - rule.beta1) * gradient
    mean, square = first / (1 - rule.beta1**count), second / (1 - rule.beta2**count)
    return mean / (square.sqrt() + rule.eps), first, second


_STEPS: Mapping[str, _Step] = {"sgd": _sgd, "adagrad": _adagrad, "adam": _adam, "yogi": _yogi}


def running_mean(table: Tensors, mean: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
    """The next (tables, state) of statistics: the mean over the rounds that told anything, all alike.

    `state` starts empty.

    Args:
        table: That of the rounds before, zeros at the start.
        mean: That over the users of this round.
        state: How many rounds there were.
    """
    rounds = state.get("rounds", torch.zeros(())) + 1
    return {name: before + (mean[name] - before) / rounds for name, before in table.items()}, {"rounds": rounds}
