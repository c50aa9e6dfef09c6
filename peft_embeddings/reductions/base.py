"""The contract of a reduction: text vectors of any width to vectors of the model's dimension."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import DataError
from fedrec.core.registry import MemberConfig
from peft_embeddings.encoders.base import Arrays, Progress, TextVectors


class Reduced(NamedTuple):
    """What a reduction makes of the catalogue's vectors.

    Attributes:
        vectors: Reduced vectors [items, dim].
        reconstruction_mse: Mean squared error, per number, of reconstructing the input from them.
        learned: What `reduce_new` needs.
    """

    vectors: NDArray[np.float32]
    reconstruction_mse: float
    learned: Arrays


class Reduction(ABC):
    """A member of the family `reduction`: runs on the server only, before the federation starts."""

    config_class: ClassVar[type[MemberConfig]]

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def reduce(self, vectors: TextVectors, dim: int, seed: int, progress: Progress) -> Reduced:
        """Reduce vectors [items, width], dense or sparse, to [items, dim], deterministic in `seed`.

        Raises DataError if `dim` is larger than the vectors allow (min of items and width).
        """

    @abstractmethod
    def reduce_new(self, vectors: TextVectors, learned: Arrays) -> NDArray[np.float32]:
        """Reduce other vectors [items, width] as those were from which `learned` comes."""


def check_dim(vectors: TextVectors, dim: int) -> None:
    """Refuse a `dim` that vectors [items, width] cannot fill: DataError with what came and how to mend it."""
    items, width = vectors.shape
    if dim > min(items, width):
        raise DataError(
            f"base_table.dim={dim}: {items} items with text, in vectors of width {width}, have at most "
            f"{min(items, width)} dimensions; set base_table.dim to {min(items, width)} or less, "
            "or bring more items with text or an encoder with wider vectors"
        )
