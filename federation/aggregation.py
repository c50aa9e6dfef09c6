"""The weighted average of the nodes' sums: checked reply by reply, folded as they come, independent of their order.

Sums are kept in 64-bit fixed point. Integer addition is associative, so the result does not depend on which reply
came first, and nothing but one model needs to be held. The scale is a function of public numbers (cap, norm limit,
size of the cohort), chosen so that a sum of admissible replies cannot overflow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from fedrec.core.errors import PacketError
from fedrec.core.tensors import Spec, TableSpec, Tensors
from fedrec.stages.addition import in_units
from fedrec.stages.sums import Sum
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

    def __init__(
        self,
        spec: Spec,
        cohort: int,
        weight_cap: int,
        max_update_norm: float,
        units_per_one: float | None = None,
        row_limits: Mapping[str, float] | None = None,
    ) -> None:
        """Nothing yet.

        Args:
            spec: What travels.
            cohort: Users who were asked.
            weight_cap: The largest weight of a user.
            max_update_norm: The largest norm of a user's update, before its weight.
            units_per_one: Of the public grid on which the nodes add up (`fedrec.stages.addition`); None: they do so in
                floating point, and the sum gets a grid as fine as the cohort allows.
            row_limits: How far one user may move a row of a table, and any other tensor as a whole, times its weight.
        """
        self._spec = spec
        self._weight_cap = weight_cap
        self._max_norm = max_update_norm
        self._row_limits = row_limits or {}
        largest = max(1.0, _SLACK * cohort * weight_cap * max_update_norm)
        self._exact = units_per_one is not None
        self._scale = units_per_one or 2.0 ** (61 - math.ceil(math.log2(largest)))
        self._sums = {name: torch.zeros(entry.shape, dtype=torch.int64) for name, entry in spec.items()}
        self._scalars = dict.fromkeys(UPDATE_SCALARS, 0)
        self._weight_of_losses = 0

    def check(self, packet: Packet, asked: int) -> None:
        """Raise PacketError if one node's reply is of no use.

        Args:
            packet: The decoded update (names, shapes and types were checked against the specification).
            asked: Users that the node was asked to train.

        Raises:
            PacketError: `non_finite` (NaN or infinity anywhere), `wrong_users` (counts that are no whole numbers, or of
                more users than asked), `wrong_examples` (more than a catalogue has items for each user),
                `wrong_weight` (more than the cap allows its users), `too_large` (norm above the limit), `row_too_large`
                (a row of a table, or another tensor, is moved farther than so many users can).
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
        self._require_norms(packet.tensors, weight, users)

    def add(self, packet: Packet, asked: int, part: float = 1.0) -> bool:
        """Fold one node's reply, whole, or raise and leave everything as it was; whether its loss is believed.

        `part` is what counts of the update, of its weight and of its losses; the other arguments and errors are those
        of `check`. A loss beyond `LARGEST_LOSS` says nothing of the update, which counts; the loss does not.
        """
        self.check(packet, asked)
        scalars = dict(zip(UPDATE_SCALARS, packet.scalars, strict=True))
        for name, tensor in packet.tensors.items():
            units = self._in_units(tensor) if tensor.is_floating_point() else tensor.long()
            self._sums[name] += units if part == 1.0 else (units * part).round().to(torch.int64)
        scalars["weight"], scalars["loss"] = scalars["weight"] * part, scalars["loss"] * part
        if believed := abs(scalars["loss"]) <= scalars["weight"] * LARGEST_LOSS:
            self._weight_of_losses += round(Fraction(scalars["weight"]) * 2**20)
        for name, value in scalars.items():
            if name != "loss" or believed:
                self._scalars[name] += round(Fraction(value) * 2**20)
        return believed

    def _require_norms(self, tensors: Tensors, weight: float, users: float) -> None:
        """Raise PacketError if a node's sum is larger than its users' updates, each within the limits, can make it."""
        unit = 1.0 if all(tensor.is_floating_point() for tensor in tensors.values()) else self._scale
        squares = {  # of each row; a tensor that is no table has one
            name: (squared.flatten(1) if self._is_table(name) else squared.reshape(1, -1)).sum(1)
            for name, squared in ((name, tensor.double().square()) for name, tensor in tensors.items())
        }
        norm = math.sqrt(sum(float(rows.sum()) for rows in squares.values())) / unit
        if norm > weight * self._max_norm * _SLACK:
            raise PacketError(
                "too_large", f"norm {norm:.3g} at weight {weight}; the limit a weight is {self._max_norm}"
            )
        for name, limit in self._row_limits.items():
            longest = math.sqrt(float(squares[name].max())) / unit
            if longest > users * limit * _SLACK:
                what = f"row {int(squares[name].argmax())} of {name}" if self._is_table(name) else name
                raise PacketError(
                    "row_too_large",
                    f"{users:.0f} users move {what} by {longest:.3g} in all; the limit a user is {limit:.3g} "
                    "(federation.max_row_norm)",
                )

    def _is_table(self, name: str) -> bool:
        return isinstance(self._spec[name], TableSpec)

    def _in_units(self, tensor: Tensor) -> Tensor:
        """A sum in floating point as a whole number of units; on a public grid, as the nodes put it there."""
        if self._exact:
            return in_units(tensor, self._scale)
        return (tensor.double() * self._scale).round().to(torch.int64)

    @property
    def weight_of_losses(self) -> float:
        """The weight of the replies whose losses are believed."""
        return self._weight_of_losses / 2**20

    def summary(self) -> dict[str, float | int | None]:
        """Of this fold alone, as `summary` has it."""
        return summary([self])

    @property
    def loss(self) -> float | None:
        """The mean loss; of nobody None."""
        return _mean_loss([self])

    def scalar(self, name: str) -> float:
        """The sum of one of the update's scalars over all replies; of losses, over those that are believed."""
        return self._scalars[name] / 2**20

    def sum(self) -> Sum:
        """The sum of the users' weighted updates, over the sum of their weights."""
        return Sum(self._spec, self._sums, self._scale, self.scalar("weight"))


def summary(folds: Sequence[UpdateFold]) -> dict[str, float | int | None]:
    """Of one or more folds: users, examples, mean loss, users new to training, and users left out, by reason.

    The mean loss of nobody is None.
    """
    names = [name for name in UPDATE_SCALARS if name not in ("weight", "loss")]
    counts = {name: int(sum(fold.scalar(name) for fold in folds)) for name in names}
    return {**counts, "loss": _mean_loss(folds)}


def _mean_loss(folds: Sequence[UpdateFold]) -> float | None:
    weight = sum(fold.weight_of_losses for fold in folds)
    return sum(fold.scalar("loss") for fold in folds) / weight if weight else None


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
