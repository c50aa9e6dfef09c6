"""The contract of a text encoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedrec.registry import MemberConfig

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total) while something long is computed."""

TextVectors: TypeAlias = "NDArray[np.float32] | csr_array"
"""float32 vectors [items, width], dense or (bags of words) in compressed sparse rows."""


class TextEncoder(ABC):
    """A member of the family `encoder`: runs on the server only, before the federation starts."""

    config_class: ClassVar[type[MemberConfig]]

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def fingerprint(self) -> str:
        """Text that changes whenever the vectors of the same sentences would: configuration, model, library version."""

    @abstractmethod
    def encode(self, sentences: Sequence[str], progress: Progress) -> TextVectors:
        """float32 vectors [len(sentences), width]; an empty sentence gets the zero vector.

        Raises DataError, saying how to mend it, if the model or the text does not allow it.
        """
