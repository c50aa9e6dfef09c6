"""A backbone in three parts, of which the server holds the middle: what it has to say for that.

The client holds the bottom, which reads the items of a history, and the top, which makes of hidden states what scores
read. In between, hidden states go to the server and come back; gradients go the other way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Final

from torch import Tensor

from fedrec.core.tensors import Spec, Tensors

PLAIN: Final[Mapping[str, tuple[str, str]]] = {
    "optim": ("fast", "the middle takes one step of plain gradient descent along with each user's own"),
    "privacy": ("none", "the server sees hidden states of each user, from which texts can be read"),
    "aggregation": ("plain", "the server works out each user's part of the middle, and sees more than a sum"),
    "codec": ("float32", "hidden states and their gradients travel as they are"),
    "uplink": ("dense", "a user's change leaves in two messages"),
    "downlink": ("dense", "the parts of the model are sent with different messages"),
    "network": ("none", "the time that three messages take is not simulated"),
}
"""What a split backbone goes with alone: family -> member, and why."""

HIDDEN: Final = "hidden"
"""Under this name `Backbone.user` finds, among a user's private tensors, hidden states as they are above the middle."""


class Split(ABC):
    """The parts of a backbone.

    Attributes:
        lower: Those of the backbone's shared tensors that the bottom reads.
        upper: Those that are read above the middle.
        middle: What is trained of the middle. It is no shared tensor: it never leaves the server.
        length: The most hidden states of a history.
        width: Numbers of a hidden state.
    """

    lower: Spec
    upper: Spec
    middle: Spec
    length: int
    width: int

    @abstractmethod
    def below(self, shared: Tensors, frozen: Tensors, items: Tensor) -> Tensor:
        """Hidden states [1 to `length`, `width`] below the middle.

        Args:
            shared: `lower`.
            frozen: The backbone's frozen tensors.
            items: int64 [n], those of a history, the oldest first; all may be read, or the latest ones.
        """

    @abstractmethod
    def states(self, frozen: Tensors, items: Tensor) -> int:
        """How many hidden states `below` makes of such a history; `frozen` and `items` as there."""

    @abstractmethod
    def between(self, middle: Tensors, hidden: Tensor) -> Tensor:
        """Hidden states above the middle, of those below it; both [states, `width`]."""


def clashes(asked: str, chosen: Mapping[str, str]) -> list[str]:
    """What a split backbone does not go with, one line each; `chosen`: family -> member, `asked`: what splits it."""
    return [
        f"{asked} with {family}={chosen[family]}: {why}; give {family}={name}, or backbone.split=null"
        for family, (name, why) in PLAIN.items()
        if chosen[family] != name
    ]
