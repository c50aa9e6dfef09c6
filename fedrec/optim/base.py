"""The contract of a recipe: the local steps of one user in one round, its loss, and the server's update.

A recipe only *declares* the local steps; the engines carry them out, for one user or for a cohort.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from fedrec.backbones.base import Advice, Backbone
from fedrec.config.schema import RunConfig
from fedrec.core.registry import MemberConfig, backbones
from fedrec.core.tensors import Tensors


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma and Ba, ICLR 2015) with state that starts at zero in every round and belongs to one user.

    `weight_decay` is L2 regularisation (added to the gradient), for steps that move private tensors alone: it would
    move rows that a user never reads.
    """

    lr: float
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0

    def reach(self, steps: int) -> float:
        """How far the first `steps` steps can move any number, whatever its gradients (without `weight_decay`).

        Step t moves it by `lr` times a mean of gradients over the root of a mean of their squares. By Cauchy and
        Schwarz that is at most the root of the sum of a_i^2 / c_i over the steps i <= t, where a_i and c_i are the
        weights of the two means: `lr` for the first step, hardly more for the next ones.
        """
        reach, shares, ratio = 0.0, 0.0, self.beta1**2 / self.beta2
        for step in range(1, steps + 1):
            shares = shares * ratio + 1.0
            mean, square = (1 - self.beta1) / (1 - self.beta1**step), (1 - self.beta2) / (1 - self.beta2**step)
            reach += self.lr * mean * math.sqrt(shares / square)
        return reach


@dataclass(frozen=True)
class Sgd:
    """Plain gradient descent; `weight_decay` as Adam's."""

    lr: float
    weight_decay: float = 0.0


LocalOptimiser = Adam | Sgd


@dataclass(frozen=True)
class Window:
    """Which consecutive items of a user's history it trains on in a round.

    Attributes:
        length: How many, at most.
        placement: The `latest` ones, or those from a place drawn at `random` in every round.
    """

    length: int
    placement: Literal["random", "latest"]


@dataclass(frozen=True)
class Contexts:
    """Prefixes of a user's history, to each of which what is private is fitted, and then predicts what follows.

    A context ends somewhere among the user's last items: the first of them in the first `count`-th part of these, and
    so on, at a place drawn in every round. Steps that move private tensors alone read the items before its end, steps
    that move shared ones those that follow it too. What is shared moves by the mean of the contexts' gradients, so
    that a user gives one update, whatever their number.

    Attributes:
        count: How many, at least 2, or 1 with `ahead_only`.
        length: Latest items of a prefix that are read, at most.
        span: Among how many of the user's last items they end; the first three items are in every prefix, though.
        ahead: Items after its end that are read where shared tensors move, at most.
        ahead_only: Whether these alone are predicted, and never an item of the prefix. Something follows every prefix
            then, and no prefix but an only item's is empty.
    """

    count: int
    length: int
    span: int
    ahead: int
    ahead_only: bool = False

    def passes(self, own_loss: bool) -> int:
        """How often a context is gone through in a step: once, or by a backbone's own loss for each item `ahead`."""
        return self.ahead if own_loss else 1

    @property
    def longest(self) -> int:
        """Items that a context reads, at most."""
        return self.length + self.ahead

    @property
    def most_items(self) -> int:
        """Items of its history that a user reads in all contexts together, at most."""
        return min(self.count * self.longest, self.span + self.longest)


@dataclass(frozen=True)
class LocalStep:
    """One full-batch gradient step of one user over its whole history, its window, or each of its contexts.

    Attributes:
        private: Whether the private tensors move.
        shared: Whether the trainable (shared) tensors move.
        optimiser: Its state is kept over the steps of a round that name an equal optimiser.
        half_life: Later interactions of the user with which one counts half as much in the loss
            (`fedrec.optim.losses.recency`); None: all count alike.
    """

    private: bool
    shared: bool
    optimiser: LocalOptimiser
    half_life: float | None = None


class Recipe(ABC):
    """A member of the family `optim`; `advice` is that of the backbone it trains, for values that may follow it."""

    config_class: ClassVar[type[MemberConfig]]

    takes_own_loss: ClassVar[bool] = False
    """Whether it trains a backbone by that backbone's own loss (`Backbone.own_loss`)."""

    def __init__(self, config: Any, advice: Advice) -> None:
        self.config = config
        self.advice = advice

    @classmethod
    def problems(cls, config: RunConfig) -> list[str]:
        """Why the chosen backbone cannot be trained with the recipe, one line each."""
        backbone: Backbone = backbones.get(config.backbone.name)(config.backbone, config.base_table.dim)
        return cls(config.optim, backbone.advice).refusals(backbone)

    @property
    @abstractmethod
    def negatives(self) -> int:
        """Negatives drawn for each positive, or for all positives of a user together; afresh in every round."""

    @property
    def shared_negatives(self) -> bool:
        """Whether the negatives are drawn once for the user, and all its positives are set against the same ones."""
        return False

    @property
    def fresh_negatives(self) -> bool:
        """Whether they are drawn for every step, not once for all steps of a round."""
        return True

    @property
    def window(self) -> Window | None:
        """What of its history a user trains on in a round; None: all of it. Its negatives are unknown to all of it."""
        return None

    @property
    def contexts(self) -> Contexts | None:
        """Prefixes of its history that a user trains on in a round, instead of all of it or a window; None: no such.

        Their private tensors start where the user's do. After the round the latest context's are the user's.
        """
        return None

    def refusals(self, backbone: Backbone) -> list[str]:
        """Why this recipe cannot train that backbone, one line each; none if it can."""
        name = backbone.config.name
        if backbone.own_loss and not self.takes_own_loss:
            return [
                f"optim={self.config.name}: backbone={name} is trained by a loss of its own, not one of scores; give "
                "optim=fast, with optim.loss=own and optim.negatives=0"
            ]
        if backbone.advice.prefixes:
            if self.contexts is not None and self.contexts.ahead_only:
                return []
            return [
                f"optim={self.config.name}: backbone={name} has read the items of a history, and is to be judged by "
                "what follows them; give optim=fast, which trains on prefixes"
            ]
        if self.contexts is None:
            return []
        asked = f"optim.contexts={self.contexts.count}"
        if backbone.causal:
            return [
                f"{asked}: backbone={name} scores every item of a history by what came before it already; read more "
                "items (optim.window), and give optim.contexts=1"
            ]
        if not backbone.private:
            return [
                f"{asked}: backbone={name} has no private tensors that could be fitted to a prefix; give "
                "optim.contexts=1"
            ]
        return []

    @property
    def private_anew(self) -> bool:
        """Whether private tensors start anew in every round and before every ranking, not from the user's last ones."""
        return False

    @abstractmethod
    def local_steps(self) -> Sequence[LocalStep]:
        """What a chosen user does in a round."""

    @abstractmethod
    def solve_steps(self) -> Sequence[LocalStep]:
        """How a user fits its private tensors alone to its history before it is ranked: nothing shared moves."""

    @abstractmethod
    def loss(self, positive: Tensor, negative: Tensor, mask: Tensor) -> Tensor:
        """A user's loss [...] from scores of positives [..., pairs] and negatives [..., pairs, q].

        Shared negatives are [..., 1, q]. `mask` [..., pairs] is the weight of a real pair, 1.0 if all count alike, and
        0.0 for padding; the loss is the weighted mean.
        """

    def row_reach(self, width: int) -> float:
        """How far one user's training can move a row, or a whole tensor, of so many numbers; infinity: any distance.

        What is moved farther was not moved by this recipe (`fedrec.stages.rows`).
        """
        return math.inf

    @abstractmethod
    def server_update(self, model: Tensors, mean_delta: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        """The next (model, optimiser state) from the weighted mean of the users' deltas; `state` starts empty."""
