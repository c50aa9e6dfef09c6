"""The contract of a backbone: it scores items for one user, and says which of its tensors are private."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedrec.backbones.split import Split
from fedrec.core.registry import MemberConfig
from fedrec.core.tensors import Spec, Tensors
from fedrec.wire.item_counts import ItemCounting

Uniform = Callable[[str, int], Tensor]
"""`uniform(name, width)`: independent uniform numbers [..., items, width] in [0, 1), others for every name."""


@dataclass(frozen=True)
class Advice:
    """How the paper of a backbone trains it: what a recipe takes where it is told to follow the backbone.

    Attributes:
        loss: Of `fedrec.optim.losses`, or the backbone's `own`.
        lr: Learning rate of the clients' Adam.
        prefixes: Whether what a user is has to be made of a prefix of its history and judged by what follows that
            alone. So it is where `user` reads the very items that it would be judged by.
    """

    loss: Literal["bpr", "bce", "own"]
    lr: float
    prefixes: bool = False


@dataclass(frozen=True)
class ScoreContext:
    """What a score may depend on beside tensors.

    Attributes:
        training: Whether it is for training (dropout is on) or for ranking.
        uniform: Randomness of the score, only while training. A number is a function of the round's secret seed, the
            user, the step and the place of the item among all that the user scores in the step, never of the layout.
    """

    training: bool
    uniform: Uniform | None = None


class ItemSequence(NamedTuple):
    """Items in the order in which their user interacted with them, the oldest first.

    Attributes:
        items: int64 [..., n].
        vectors: [..., n, dim].
        mask: Bool [..., n], False for padding. It stands after the last item of a user who has fewer than n, and what
            `items` and `vectors` hold there is any item.
    """

    items: Tensor
    vectors: Tensor
    mask: Tensor


class History(Protocol):
    """What a user has interacted with before what is scored: its own items, and nothing of anybody else's.

    It is read as sums over its items, so that a cohort's histories of any length need no rectangle, or in its order.
    The leading dimension of every result, if any, is the user's. Gradients reach the item vectors.
    """

    @property
    def length(self) -> Tensor:
        """Items in the history [...], at least 1 in training; an item that stands there twice counts twice."""

    def sum(self, weights: Tensor | None = None) -> Tensor:
        """Sum of `weights[i] * vector(i)` over the items i [..., dim]; `weights` are constants [n_items] (None: 1)."""

    def total(self, weights: Tensor) -> Tensor:
        """Sum of `weights[i]` over the items i [...]; `weights` are constants [n_items]."""

    def sequence(self, length: int | None = None) -> ItemSequence:
        """The latest `length` items in order, all of them for None."""


class Backbone(ABC):
    """A member of the family `backbone`, for item vectors of `dim` numbers.

    `shared` tensors are averaged over users and cross the network; `private` ones never leave the user's device;
    `frozen` ones are made by the server from public counts and sent once.
    """

    config_class: ClassVar[type[MemberConfig]]

    advice: ClassVar[Advice]

    common_start: ClassVar[bool] = False
    """Whether all users start from the same private tensors, and not each from its own."""

    ranking_dtype: ClassVar[torch.dtype] = torch.float64
    """In what users are ranked. float64 frees ranks of rounding; float32 does for a network, which takes five times as
    long in float64, and whose numbers were trained in float32 anyway."""

    reads_history: ClassVar[bool] = False
    """Whether `user` is to be called: the score depends on the user's own history."""

    own_loss: ClassVar[bool] = False
    """Whether it is trained by its `losses`, and not by a loss of its scores: these are for rankings alone, then."""

    causal: ClassVar[bool] = False
    """Whether `states` is to be called, and not `user`: each item of a history is scored by what came before it."""

    def __init__(self, config: Any, dim: int) -> None:
        self.config = config
        self.dim = dim

    @property
    def shared(self) -> Spec:
        """Specification of the shared tensors."""
        return {}

    @property
    def split(self) -> Split | None:
        """The parts of a backbone whose middle the server holds; None: all of it is the client's.

        `init_shared` gives what is trained of the middle, too.
        """
        return None

    @property
    @abstractmethod
    def private(self) -> Spec:
        """Specification of one user's private tensors."""

    @property
    def numbers_per_score(self) -> int:
        """Numbers that `score` holds at once for each score: what bounds how many are worked out together."""
        return 1

    @property
    def history_length(self) -> int | None:
        """Latest items of a history of which `states` is called where a user is ranked; None: all of them."""
        return None

    def numbers_per_history(self, length: int) -> int:
        """Numbers that `states` or `user` holds at once for a history of that `length`, beyond `dim` an item.

        They bound how many histories are worked out together.
        """
        return 0

    @property
    def layers(self) -> int:
        """Layers that a score or a state goes through, which sites bound."""
        return max(getattr(self.config, "layers", 0), len(getattr(self.config, "hidden", ())))

    @property
    def resident(self) -> int:
        """Bytes, at most, of what is on every machine already and is read into memory for any work."""
        return 0

    @property
    def item_counting(self) -> ItemCounting | None:
        """How the users' items are counted before the first round; None: they are not."""
        return None

    def frozen(self, n_items: int) -> Spec:
        """Specification of what is sent once and never trained."""
        return {}

    def init_frozen(self, counts: Tensor) -> Tensors:
        """The frozen tensors from `counts` [n_items], as `item_counting` has them (1 for every item without it)."""
        return {}

    def require_here(self) -> None:
        """Raise ConfigError, with what mends it, if this machine lacks what the backbone needs and nobody sends."""
        return

    def init_texts(self, sentences: Sequence[str]) -> Tensors:
        """Those of the frozen tensors that the server makes of the items' texts, one sentence an item."""
        return {}

    def frozen_problem(self, frozen: Tensors) -> str | None:
        """What is wrong with frozen tensors of the right names, shapes and types that came over the network.

        None: they can be used, whatever their numbers. A backbone of which that is not true overrides this.
        """
        return None

    def init_shared(self, rng: torch.Generator) -> Tensors:
        """Initial shared tensors."""
        return {}

    @abstractmethod
    def init_private(self, seed: int, keys: NDArray[np.uint64]) -> Tensors:
        """Initial private tensors of the users `keys`: [users, ...], a function of seed and key alone.

        With `common_start` they are a function of the seed, the same for every key.
        """

    def user(self, shared: Tensors, private: Tensors, frozen: Tensors, history: History) -> Tensors:
        """What `score` gets as `private`: worked out once per user and step, with `reads_history` only.

        Args:
            shared: Shared tensors, with a leading user dimension (each user's own copies) or with none.
            private: The user's private tensors.
            frozen: Frozen tensors, the same for all users.
            history: The user's own.
        """
        return private

    def states(
        self, shared: Tensors, private: Tensors, frozen: Tensors, sequence: ItemSequence, context: ScoreContext
    ) -> Tensors:
        """What `score` gets as `private` before and after each item: worked out once per step, with `causal` only.

        State p is a function of the first p items alone, and of no item after them. While a user trains, its item p
        (counted from 0) is scored by state p. A ranking scores by the state after the last item.

        Args:
            shared: Shared tensors, with a leading user dimension (each user's own copies) or with none.
            private: The user's private tensors.
            frozen: Frozen tensors, the same for all users.
            sequence: The user's n items.
            context: Its `uniform` draws for the items of the sequence [..., n, width].

        Returns:
            Tensors [..., n + 1, ...]; the first state is that of a user without a history.
        """
        raise NotImplementedError(f"backbone {self.config.name!r} has no states: it is not causal")

    def losses(
        self, shared: Tensors, private: Tensors, frozen: Tensors, history: History, ahead: Tensor, mask: Tensor
    ) -> Tensor:
        """What each of some items costs that follow a user's history: worked out in training, with `own_loss` only.

        A user's loss is their weighted mean, and its gradient reaches all that is shared. A backbone whose `advice` is
        to train on `prefixes` is asked of items after these alone.

        Args:
            shared: Shared tensors, with a leading dimension (each history's own copies) or with none.
            private: The user's private tensors.
            frozen: Frozen tensors, the same for all users.
            history: The user's own.
            ahead: int64 [..., n], items.
            mask: Bool [..., n], those that count; the others are any items.

        Returns:
            [..., n], 0 where `mask` is False.
        """
        raise NotImplementedError(f"backbone {self.config.name!r} has no loss of its own")

    def direction(self, private: Tensors) -> Tensor | None:
        """The vector [..., dim] whose dot product with an item's vector is the item's score, while training too.

        Users who are set against many items of a small catalogue are then multiplied with all of them at once. None:
        the score is no such product.

        Args:
            private: What `score` gets as `private`.
        """
        return None

    @abstractmethod
    def score(self, shared: Tensors, private: Tensors, item_vectors: Tensor, context: ScoreContext) -> Tensor:
        """Scores [..., items] of item vectors [..., items, dim]; the leading dimension, if any, is the user's.

        A second one may follow, of the states of a `causal` backbone or of a user's contexts. That of the vectors is 1
        where all of these are set against the same items, and that of shared tensors with a user's is 1, too.
        """
