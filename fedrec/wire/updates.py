"""What users and nodes contribute to a round, and how one becomes the other."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedrec.core.tensors import Spec, Tensors, zeros

DROPPED = ("non_finite", "too_large", "no_negatives")
"""Why a node leaves a user out: NaN or infinity in its delta, a norm above the limit, or no item it does not know."""


@dataclass
class NodeUpdate:
    """The weighted sum over a node's users: sum of weight * delta, and the counts that go with it.

    `dropped` counts users who were left out, by reason (`DROPPED`): a bad user does not cost the others. `loss` is a
    sum weighted like the deltas; `cold` counts users who trained for the first time.
    """

    total: Tensors
    weight: float = 0.0
    users: int = 0
    examples: int = 0
    loss: float = 0.0
    cold: int = 0
    dropped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(DROPPED, 0))

    @staticmethod
    def empty(spec: Spec) -> NodeUpdate:
        """The update of no user."""
        return NodeUpdate(total=zeros(spec))

    def scalars(self) -> tuple[float, ...]:
        """In the order of `fedrec.wire.protocol.UPDATE_SCALARS`."""
        sums = (self.weight, self.users, self.examples, self.loss, self.cold)
        return tuple(float(value) for value in (*sums, *(self.dropped[name] for name in DROPPED)))

    def add(self, delta: Tensors, examples: int, loss: float, weight_cap: int, max_norm: float) -> bool:
        """Fold one user in; says whether it was taken (False: it was dropped and counted)."""
        squared = sum(float(tensor.double().square().sum()) for tensor in delta.values())
        if not math.isfinite(squared) or not math.isfinite(loss):
            self.dropped["non_finite"] += 1
            return False
        if math.sqrt(squared) > max_norm:
            self.dropped["too_large"] += 1
            return False
        weight = float(user_weights(np.array([examples]), weight_cap)[0])
        for name, tensor in delta.items():
            self.total[name].add_(tensor, alpha=weight)
        self.weight += weight
        self.users += 1
        self.examples += examples
        self.loss += weight * loss
        return True


def user_weights(examples: NDArray[np.int64], cap: int) -> NDArray[np.float64]:
    """The public weight of users in the average: the number of their training interactions, capped."""
    return np.minimum(examples, cap).astype(np.float64)
