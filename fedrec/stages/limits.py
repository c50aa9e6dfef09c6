"""Which users are taken, and what each of them counts: the public rules of the average."""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import override

from fedrec.stages.base import Stage
from fedrec.stages.contributions import Contributions
from fedrec.stages.draws import Draws


@dataclass(frozen=True)
class Limits(Stage):
    """Leaves out, and counts, users whose update, loss or private tensors are not finite or whose norm is too large.

    Attributes:
        weight_cap: A user's weight is the number of its training interactions, at most this.
        max_update_norm: A larger update is dropped, not shortened.
    """

    reads = "norms"

    weight_cap: int
    max_update_norm: float

    @override
    def on_devices(self, given: Contributions, draws: Draws) -> Contributions:
        norms = given.norms
        given = given.dropping(~(norms.isfinite() & given.loss.isfinite()), "non_finite")
        given = given.dropping(norms > self.max_update_norm, "too_large")
        return given.weighing(given.examples.clamp(max=self.weight_cap))
