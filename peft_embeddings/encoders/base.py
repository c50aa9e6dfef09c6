"""The contract of a text encoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedrec.core.registry import MemberConfig

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total) while something long is computed."""

TextVectors: TypeAlias = "NDArray[np.float32] | csr_array"
"""float32 vectors [items, width], dense or (bags of words) in compressed sparse rows."""

Arrays: TypeAlias = "Mapping[str, NDArray[Any]]"
"""Arrays by name: what an encoder or a reduction has learned, in a form that a file without code can hold."""


class Encoded(NamedTuple):
    """Vectors [sentences, width], and what the encoder learned from these sentences."""

    vectors: TextVectors
    learned: Arrays


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

    def fit(self, sentences: Sequence[str], progress: Progress) -> Encoded:
        """The vectors of `encode`, and what `encode_new` needs: for an encoder that learns from the catalogue."""
        return Encoded(self.encode(sentences, progress), {})

    def encode_new(self, sentences: Sequence[str], learned: Arrays, progress: Progress) -> TextVectors:
        """Vectors of other sentences, beside those of the catalogue from which `learned` comes.

        A sentence of the catalogue gets the vector that it has there.
        """
        return self.encode(sentences, progress)
