"""The contract of a reduction: text vectors of any width to vectors of the model's dimension."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedrec.registry import MemberConfig
from peft_embeddings.encoders.base import Progress


class Reduced(NamedTuple):
    """Reduced vectors [items, dim], and the mean squared error [per number] of reconstructing the input from them."""

    vectors: NDArray[np.float32]
    reconstruction_mse: float


class Reduction(ABC):
    """A member of the family `reduction`: runs on the server only, before the federation starts."""

    config_class: ClassVar[type[MemberConfig]]

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def reduce(self, vectors: NDArray[np.float32], dim: int, seed: int, progress: Progress) -> Reduced:
        """Reduce vectors [items, width] to [items, dim], deterministic in `seed`.

        Raises DataError if `dim` is larger than the vectors allow (min of items and width).
        """
