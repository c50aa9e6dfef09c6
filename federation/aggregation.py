"""The weighted average of the nodes' sums: checked reply by reply, folded as they come, independent of their order.

Sums are kept in 64-bit fixed point. Integer addition is associative, so the result does not depend on which reply
came first, and nothing but one model needs to be held. The scale is a function of public numbers (cap, norm limit,
size of the cohort), chosen so that a sum of admissible replies cannot overflow.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch

from fedrec.core.errors import PacketError
from fedrec.core.tensors import DTYPES, Spec, Tensors
from fedrec.wire.packet import Packet
from fedrec.wire.protocol import METRICS_COUNTS, UPDATE_SCALARS
from fedrec.wire.updates import DROPPED

_SLACK = 1.0 + 1e-4
"""Room for the rounding of honest float32 sums."""


LARGEST_LOSS = 1e6
"""A mean loss a unit of weight beyond this is none that training has: it is left out of the mean, and counted."""

_MOST_ITEMS = 2**31 - 1
"""Of a catalogue."""


class UpdateFold:
    """Folds the updates of one round."""

    def __init__(self, spec: Spec, cohort: int, weight_cap: int, max_update_norm: float) -> None:
        self._spec = spec
        self._weight_cap = weight_cap
        self._max_norm = max_update_norm
        self._scale = 2.0 ** (61 - math.ceil(math.log2(max(1.0, _SLACK * cohort * weight_cap * max_update_norm))))
        self._sums = {name: torch.zeros(entry.shape, dtype=torch.int64) for name, entry in spec.items()}
        self._scalars = dict.fromkeys(UPDATE_SCALARS, 0)
        self._weight_of_losses = 0

    def add(self, packet: Packet, asked: int) -> bool:
        """Fold one node's reply, whole, or raise and leave everything as it was; whether its loss is believed.

        Args:
            packet: The decoded update (names, shapes and types were checked against the specification).
            asked: Users that the node was asked to train.

        Raises:
            PacketError: `non_finite` (NaN or infinity anywhere), `wrong_users` (counts that are no whole numbers, or of
                more users than asked), `wrong_examples` (more than a catalogue has items for each user),
                `wrong_weight` (more than the cap allows its users), `too_large` (norm above the limit).

        A loss beyond `LARGEST_LOSS` says nothing of the update, which counts; the loss does not.
        """
        scalars = dict(zip(UPDATE_SCALARS, packet.scalars, strict=True))
        weight, users = scalars["weight"], scalars["users"]
        if not all(math.isfinite(value) for value in packet.scalars):
            raise PacketError("non_finite", f"the update's scalars are not all finite: {scalars}")
        if not all(bool(tensor.isfinite().all()) for tensor in packet.tensors.values()):
            raise PacketError("non_finite", "the update has NaN or infinite numbers")
        counts = {name: value for name, value in scalars.items() if name not in ("weight", "loss")}
        if any(value < 0 or value != int(value) for value in counts.values()):
            raise PacketError("wrong_users", f"counts must be whole numbers: {counts}")
        if users + sum(scalars[name] for name in DROPPED) > asked or scalars["cold_users"] > asked:
            raise PacketError("wrong_users", f"{asked} users were asked to train, the node counts {counts}")
        if scalars["examples"] > users * _MOST_ITEMS:
            raise PacketError("wrong_examples", f"{scalars['examples']:g} examples of {users:.0f} users are impossible")
        if not 0 <= weight <= self._weight_cap * users:
            raise PacketError("wrong_weight", f"weight {weight} of {users} users; the cap is {self._weight_cap} a user")
        norm = math.sqrt(sum(float(tensor.double().square().sum()) for tensor in packet.tensors.values()))
        if norm > weight * self._max_norm * _SLACK:
            raise PacketError(
                "too_large", f"norm {norm:.3g} at weight {weight}; the limit a weight is {self._max_norm}"
            )
        for name, tensor in packet.tensors.items():
            self._sums[name] += (tensor.double() * self._scale).round().to(torch.int64)
        if believed := abs(scalars["loss"]) <= weight * LARGEST_LOSS:
            self._weight_of_losses += round(Fraction(weight) * 2**20)
        for name, value in scalars.items():
            if name != "loss" or believed:
                self._scalars[name] += round(Fraction(value) * 2**20)
        return believed

    def summary(self) -> dict[str, float | int | None]:
        """Users, examples, mean loss, users new to training, and users that their nodes left out, by reason.

        The mean loss of nobody is None.
        """
        counts = {name: int(self.scalar(name)) for name in UPDATE_SCALARS if name not in ("weight", "loss")}
        weight = self._weight_of_losses / 2**20
        return {**counts, "loss": self.scalar("loss") / weight if weight else None}

    def scalar(self, name: str) -> float:
        """The sum of one of the update's scalars over all replies; of losses, over those that are believed."""
        return self._scalars[name] / 2**20

    def mean(self) -> Tensors | None:
        """The weighted mean of the users' deltas, or None if nobody contributed."""
        weight = self.scalar("weight")
        if weight <= 0:
            return None
        return {
            name: (total.double() / (self._scale * weight)).to(DTYPES[self._spec[name].dtype])
            for name, total in self._sums.items()
        }


def weighted(packet: Packet) -> Packet:
    """The packet of a lone user, multiplied by its weight; a weight that is no number makes the product none."""
    weight = dict(zip(UPDATE_SCALARS, packet.scalars, strict=True))["weight"]
    return packet._replace(tensors={name: tensor * weight for name, tensor in packet.tensors.items()})


def check_sums(scalars: tuple[float, ...], residents: int) -> tuple[float, ...]:
    """Sums of metrics as a node with `residents` users sent them: `METRICS_COUNTS`, then one sum for each metric.

    Raises PacketError (`non_finite`, `wrong_metrics`) if a number is not finite, or cannot be what it says: no more
    users than live there, and every metric of a user lies between 0 and 1.
    """
    if not all(math.isfinite(value) for value in scalars):
        raise PacketError("non_finite", "the metrics are not all finite")
    (users, cold, diverged), sums = scalars[: len(METRICS_COUNTS)], scalars[len(METRICS_COUNTS) :]
    whole = all(count == int(count) and count >= 0 for count in (users, cold, diverged))
    if not whole or users + diverged > residents or cold > users or not all(0 <= x <= users * _SLACK for x in sums):
        raise PacketError("wrong_metrics", f"these cannot be the sums of a node with {residents} users: {scalars}")
    return scalars
