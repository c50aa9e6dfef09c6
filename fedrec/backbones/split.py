"""A backbone in three parts, of which the server holds the middle: what it has to say for that.

The client holds the bottom, which reads the items of a history, and the top, which makes of hidden states what scores
read. In between, hidden states go to the server and come back; gradients go the other way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final

from torch import Tensor

from fedrec.core.tensors import Spec, Tensors

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
    def between(self, middle: Tensors, hidden: Tensor) -> Tensor:
        """Hidden states above the middle, of those below it; both [states, `width`]."""
