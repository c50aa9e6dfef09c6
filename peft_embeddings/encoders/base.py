"""The contract of a text encoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedrec.registry import MemberConfig

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total) while something long is computed."""


class TextEncoder(ABC):
    """A member of the family `encoder`: runs on the server only, before the federation starts."""

    config_class: ClassVar[type[MemberConfig]]

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def fingerprint(self) -> str:
        """Text that changes whenever the vectors of the same sentences would: configuration, model, library version."""

    @abstractmethod
    def encode(self, sentences: Sequence[str], progress: Progress) -> NDArray[np.float32]:
        """Vectors [len(sentences), width]; an empty sentence gets the zero vector."""
