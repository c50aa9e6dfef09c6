"""The fast recipe: private tensors are solved locally, the shared ones get one gradient, the server steps adaptively.

A user first fits what is private to the received model (a few steps, nothing shared moves), then takes one gradient of
what is shared, on as many negatives as it likes. What it sends is that gradient as a delta of the usual
specification. The server takes the weighted mean for a negative gradient (Reddi et al., ICLR 2021).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le
from torch import Tensor
from typing_extensions import override

from fedrec.backbones.base import Backbone
from fedrec.core.bounds import (
    LARGEST_RATE,
    LONGEST_HALF_LIFE,
    MOST_CONTEXTS,
    MOST_HISTORY,
    MOST_ITEMS,
    MOST_NEGATIVES,
    MOST_STEPS,
)
from fedrec.core.registry import MemberConfig, optims
from fedrec.core.space import OneOf, Real, Space, Whole
from fedrec.core.tensors import Tensors
from fedrec.optim.base import Adam, Contexts, LocalStep, Recipe, Sgd, Window
from fedrec.optim.losses import LOSSES
from fedrec.optim.server import ServerOptimiser, server_step


@dataclass(frozen=True)
class FastConfig(MemberConfig):
    """Configuration of `fast`.

    Attributes:
        loss: `softmax` (sampled), `bpr` or `bce`; `own` for a backbone that has a loss of its own.
        negatives: Negatives of a user, the same for all its positives, or negatives per positive; 0 with `loss: own`.
        shared_negatives: Which of the two.
        fresh_negatives: Whether they are drawn for every local step, or once a round.
        private_steps: Steps on the private tensors before the shared ones get their gradient.
        private_lr: Learning rate of these steps.
        private_decay: Their L2 regularisation.
        private_optimiser: Takes these steps: `adam`, or `sgd`, plain gradient descent.
        private_anew: Whether private tensors start anew in every round and before every ranking, instead of where the
            user's last round left them. What a user has trained on then counts no more than what it has not.
        half_life: Where private tensors are fitted, here and before a ranking: later interactions with which one of the
            user's counts half as much (null: all count alike).
        shared_half_life: The same for the gradient of what is shared.
        solve_steps: Such steps before a user is ranked (not sent, not kept).
        solve_lr: Learning rate of these. A small one leaves a user who has trained where it is, a larger one takes up
            what it has not trained on: at test, the validation item.
        server: The server's optimiser.
        window: Consecutive items of its history that a user trains on in a round (null: all). A user's weight counts
            the items of the window, and before a ranking private tensors are fitted to the whole history all the same.
        window_placement: `random`: from a place drawn in every round; `latest`: always the latest ones.
        contexts: Prefixes of its history to each of which a user fits what is private; the gradient of what is shared
            is the mean over them, of the items up to a little after each (`fedrec.optim.base.Contexts`). 1: none, the
            private tensors are fitted to what they predict; or one, for a backbone that is judged by what follows a
            prefix alone. Of its private tensors there is with several no one state that could be kept, so they have to
            start anew. A user's weight counts its whole history.
        context_length: Latest items of a prefix that are read.
        context_span: Among how many of the user's last items the prefixes end.
        context_ahead: Items after its end that a prefix has to predict, beside its own.
    """

    name: Literal["fast"]
    loss: Literal["softmax", "bpr", "bce", "own"]
    negatives: Annotated[int, Ge(0), Le(MOST_NEGATIVES)]
    shared_negatives: bool
    fresh_negatives: bool
    private_steps: Annotated[int, Ge(0), Le(MOST_STEPS)]
    private_lr: Annotated[float, Gt(0), Le(LARGEST_RATE)]
    private_decay: Annotated[float, Ge(0), Le(LARGEST_RATE)]
    private_optimiser: Literal["adam", "sgd"]
    private_anew: bool
    half_life: Annotated[float, Gt(0), Le(LONGEST_HALF_LIFE)] | None
    shared_half_life: Annotated[float, Gt(0), Le(LONGEST_HALF_LIFE)] | None
    solve_steps: Annotated[int, Ge(0), Le(MOST_STEPS)]
    solve_lr: Annotated[float, Gt(0), Le(LARGEST_RATE)]
    server: ServerOptimiser
    # With defaults, and not told while they change nothing: a run of old has none of them.
    window: Annotated[int, Ge(1), Le(MOST_ITEMS)] | None = None
    window_placement: Literal["random", "latest"] = "random"
    contexts: Annotated[int, Ge(1), Le(MOST_CONTEXTS)] = 1
    context_length: Annotated[int, Ge(1), Le(MOST_HISTORY)] = 43
    context_span: Annotated[int, Ge(1), Le(MOST_HISTORY)] = 60
    context_ahead: Annotated[int, Ge(1), Le(MOST_HISTORY)] = 5

    @override
    def told(self) -> dict[str, Any]:
        told = super().told()
        told["server"] = self.server.told()
        if self.window is None:
            del told["window"], told["window_placement"]
        if self.contexts == 1:
            for field in dataclasses.fields(self):
                if field.name.startswith("context") and told[field.name] == field.default:
                    del told[field.name]
        return told


@optims.register("fast")
class FastRecipe(Recipe):
    """Solve what is private, one gradient of what is shared, an adaptive step of the server."""

    config_class = FastConfig
    takes_own_loss = True
    space: ClassVar[Space] = {
        "server.lr": Real(0.002, 0.2, log=True),
        "negatives": Whole(20, 1000, log=True),
        "private_lr": Real(0.005, 0.5, log=True),
        "private_steps": Whole(1, 10),
        "solve_lr": Real(0.005, 0.5, log=True),
        "solve_steps": Whole(0, 30),
        "half_life": OneOf((4.0, 8.0, 16.0, 32.0)),
    }
    config: FastConfig

    @property
    @override
    def negatives(self) -> int:
        return self.config.negatives

    @property
    @override
    def shared_negatives(self) -> bool:
        return self.config.shared_negatives

    @property
    @override
    def fresh_negatives(self) -> bool:
        return self.config.fresh_negatives

    @property
    @override
    def private_anew(self) -> bool:
        return self.config.private_anew

    @property
    @override
    def window(self) -> Window | None:
        return None if self.config.window is None else Window(self.config.window, self.config.window_placement)

    @property
    @override
    def contexts(self) -> Contexts | None:
        config = self.config
        alone = self.advice.prefixes
        if config.contexts == 1 and not alone:
            return None
        return Contexts(config.contexts, config.context_length, config.context_span, config.context_ahead, alone)

    @override
    def refusals(self, backbone: Backbone) -> list[str]:
        found, config = super().refusals(backbone) + self._of_loss(backbone), self.config
        if found or self.contexts is None:
            return found
        asked = f"optim.contexts={config.contexts}"
        if self.contexts.ahead_only:
            asked = f"backbone={backbone.config.name}"
        elif not config.private_anew:
            found.append(
                f"{asked}: each context has private tensors of its own, so that none of them are the user's to go on "
                "with; give optim.private_anew=true"
            )
        if config.private_steps == 0 and not self.contexts.ahead_only:
            found.append(f"{asked}: nothing is fitted to a prefix with optim.private_steps=0; give some steps")
        if config.window is not None:
            found.append(
                f"{asked}: optim.window={config.window} is what a user reads without contexts; give optim.window=null, "
                "and optim.context_length"
            )
        return found

    def _of_loss(self, backbone: Backbone) -> list[str]:
        """Why the loss does not go with that backbone, or with the negatives, one line each."""
        config, name, found = self.config, backbone.config.name, list[str]()
        if backbone.own_loss and config.loss != "own":
            found.append(
                f"optim.loss={config.loss}: backbone={name} is trained by a loss of its own, not one of scores; give "
                "optim.loss=own"
            )
        if config.loss == "own" and not backbone.own_loss:
            found.append(f"optim.loss=own: backbone={name} has no loss of its own; give softmax, bpr or bce")
        if config.loss == "own" and config.negatives:
            found.append(
                f"optim.negatives={config.negatives}: a backbone's own loss reads no negatives; give optim.negatives=0"
            )
        if config.loss != "own" and not config.negatives:
            found.append(
                f"optim.negatives=0: optim.loss={config.loss} sets positives against negatives; give 1 or more"
            )
        return found

    def _private(self, lr: float) -> LocalStep:
        kind = {"adam": Adam, "sgd": Sgd}[self.config.private_optimiser]
        optimiser = kind(lr, weight_decay=self.config.private_decay)
        return LocalStep(private=True, shared=False, optimiser=optimiser, half_life=self.config.half_life)

    @override
    def local_steps(self) -> Sequence[LocalStep]:
        # A step of size one: the delta is the negative gradient itself.
        private = [self._private(self.config.private_lr)] * self.config.private_steps
        return [*private, LocalStep(False, True, Sgd(1.0), self.config.shared_half_life)]

    @override
    def solve_steps(self) -> Sequence[LocalStep]:
        return [self._private(self.config.solve_lr)] * self.config.solve_steps

    @override
    def loss(self, positive: Tensor, negative: Tensor, mask: Tensor) -> Tensor:
        return LOSSES[self.config.loss](positive, negative, mask)

    @override
    def server_update(self, model: Tensors, mean_delta: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        return server_step(self.config.server, model, mean_delta, state)
