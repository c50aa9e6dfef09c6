"""No reduction: the encoder's vectors as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from fedrec.core.errors import DataError
from fedrec.core.registry import MemberConfig, reductions
from peft_embeddings.encoders.base import Arrays, Progress, TextVectors
from peft_embeddings.reductions.base import Reduced, Reduction


@dataclass(frozen=True)
class NoReductionConfig(MemberConfig):
    """Nothing of it can be chosen."""

    name: Literal["none"]


@reductions.register("none")
class NoReduction(Reduction):
    """Vectors of `dim` numbers stay what they are; they are not centred either, so that dot products stay the same."""

    config_class = NoReductionConfig

    @override
    def reduce(self, vectors: TextVectors, dim: int, seed: int, progress: Progress) -> Reduced:
        width = int(vectors.shape[1])
        if dim != width:
            raise DataError(
                f"base_table.dim={dim}: the encoder's vectors have {width} numbers, and reduction=none leaves them as "
                f"they are; set base_table.dim={width}, or choose another reduction"
            )
        return Reduced(_dense(vectors), 0.0, {})

    @override
    def reduce_new(self, vectors: TextVectors, learned: Arrays) -> NDArray[np.float32]:
        return _dense(vectors)


def _dense(vectors: TextVectors) -> NDArray[np.float32]:
    return vectors if isinstance(vectors, np.ndarray) else vectors.toarray().astype(np.float32)
