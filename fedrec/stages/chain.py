"""The one path from what users trained to their sum, for both engines and for the server."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedrec.codecs.base import Codec
from fedrec.codecs.float32 import Float32Codec, Float32Config
from fedrec.codecs.rounding import RoundingCodec
from fedrec.core.errors import ConfigError, FederationError
from fedrec.core.tensors import Spec, Tensors
from fedrec.stages.addition import (
    MOST_USERS,
    Addition,
    GridAddition,
    PlainAddition,
    PublicGrid,
    SharedNoise,
    WholeNumbers,
)
from fedrec.stages.base import Reads, Release, Round, Stage
from fedrec.stages.contributions import Contributions
from fedrec.stages.draws import Draws
from fedrec.stages.limits import Limits
from fedrec.stages.rows import RowLimits
from fedrec.stages.sums import Sum
from fedrec.uplinks.base import Uplink
from fedrec.uplinks.dense import DenseConfig, DenseUplink
from fedrec.wire.updates import NodeUpdate

InTime = Callable[[Contributions, NDArray[np.int64]], Contributions]
"""Leaves out who is late, by what users give and the bytes of the tensors in each one's packet."""

_ROOM = 1 - 2.0**-12
_ORDER: Sequence[Reads] = ("nothing", "norms", "rows", "dense")


class Stages:
    """All stages of a run, in the order in which contributions go through them.

    Attributes:
        stages: Those that read `rows` or `dense`; the uplink's, with the limits of rows and the codec's rounding; the
            limits and weights; those that read `norms` or `nothing`. A stage never sees a norm that rounding changes
            afterwards.
        row_limits: How far one user may move a row; None: there is no such limit.
        limits: The public rules among them.
        codec: Of users' updates.
        uplink: What of an update leaves its device, in that codec.
    """

    def __init__(
        self,
        members: Sequence[Stage],
        codec: Codec,
        limits: Limits,
        row_limits: RowLimits | None = None,
        *,
        uplink: Uplink | None = None,
        bits: int | None = None,
        masked: bool = False,
    ) -> None:
        """The stages of a run.

        Args:
            members: What was chosen, in its order; of each kind they keep it.
            codec: A `RoundingCodec` rounds each user's update as the user's own packet would; exact ones change
                nothing.
            limits: Who is taken, and what each counts.
            row_limits: How far one user may move a row; None: as far as its norm lets it.
            uplink: What of an update leaves its device, over the same codec; None: all rows of all tables.
            bits: Of the public grid on which devices put their numbers; None: they send those of the codec.
            masked: Whether nobody sees less than the sum over all devices.

        Raises:
            ConfigError: The codec is neither: an update would be rounded on a device of its own, and not beside others.
                Or a stage noises a sum of which packets would tell rows.
        """
        if not codec.exact and not isinstance(codec, RoundingCodec):
            raise ConfigError(
                [
                    f"codec={codec.config.name}: {type(codec).__qualname__} is not exact and does not derive from "
                    "RoundingCodec (fedrec/codecs/rounding.py), so no engine can round each user's update with it; "
                    "derive it from that, or say `exact = True` if what it decodes is what it encoded, to the bit"
                ]
            )
        self.uplink = DenseUplink(DenseConfig("dense"), codec) if uplink is None else uplink
        first = [stage for stage in members if stage.reads in ("rows", "dense")]
        last = [stage for stage in members if stage.reads in ("nothing", "norms")]
        shares = [stage.shares for stage in members if stage.shares is not None]
        whole = shares or bits is not None
        # Whole numbers are sent as they are: no codec rounds what a device puts on a grid.
        sent = [row_limits] if whole and row_limits else [] if whole else self.uplink.stages(row_limits)
        self.stages: Sequence[Stage] = [*first, *sent, limits, *last]
        self.row_limits = row_limits
        self.limits = limits
        self.codec = codec
        self.addition: Addition = PlainAddition()
        if any(stage.hides_rows for stage in members):
            if self.uplink.tells_rows:
                raise ConfigError([self.uplink.refusal(self.uplink.config.name)])
            self.addition = GridAddition(self.max_norm, self.uplink.rounding)
        if shares:
            self.addition = SharedNoise(*shares, everybody=masked)
        elif bits is not None:
            self.addition = PublicGrid(bits, self.largest_number)
        self._coarsest = 0.0
        if bits is not None and not shares:
            self._coarsest = 2.0 ** (1 - bits)
        elif isinstance(codec, RoundingCodec):
            self._coarsest = codec.coarsest

    @cached_property
    def reads(self) -> Reads:
        """The most that any stage needs."""
        return max((stage.reads for stage in self.stages), key=_ORDER.index)

    @cached_property
    def max_norm(self) -> float:
        """No update is larger, before its weight."""
        bounds = [stage.max_norm for stage in self.stages if stage.max_norm is not None]
        return min([self.limits.max_update_norm, *bounds])

    @property
    def counted_length(self) -> float:
        """The norm of a user's part of a statistic: 1, or as much as is let through, with room for rounding."""
        return min(1.0, self.max_norm * _ROOM)

    @property
    def largest_number(self) -> float:
        """No number of an update is larger, times its weight."""
        return self.row_limits.reach(1) if self.row_limits else self.limits.weight_cap * self.max_norm

    @property
    def survivors(self) -> int:
        """Users whom a sum must have for anybody to know it."""
        return max((stage.survivors for stage in self.stages), default=0)

    @property
    def tells(self) -> bool:
        """Whether devices tell anything beside the sum, its weight and its number of users."""
        return all(stage.tells for stage in self.stages)

    @property
    def exact(self) -> bool:
        """Whether sums are exact, because a stage draws noise from them or they are made of whole numbers."""
        return isinstance(self.addition, GridAddition | WholeNumbers)

    @property
    def alike(self) -> bool:
        """Whether each user's update has to be the same wherever users live, because noise is drawn for it."""
        return any(stage.alike for stage in self.stages)

    @property
    def noised_on_devices(self) -> bool:
        """Whether what a round gives away leaves the devices noised, before anything reaches the server."""
        return any(stage.noise_on_devices > 0 for stage in self.stages)

    @property
    def noised_by_shares(self) -> bool:
        """Whether that noise is only a share of what protects, of a sum."""
        return any(stage.shares is not None for stage in self.stages)

    def largest(self, spec: Spec) -> float:
        """The norm that the update of one user has at most in a sum, for each unit of weight.

        That of noise from devices is within twice its expectation, and a little more, but for a chance far below that
        of any error of transmission.
        """
        return self.max_norm + self._longest_noise(spec)

    def largest_part(self, spec: Spec) -> float:
        """The same of a user's part of a statistic, whose numbers a codec or a grid may have rounded up."""
        numbers = sum(entry.size for entry in spec.values())
        return self.counted_length * (1 + math.sqrt(numbers) * self._coarsest) + self._longest_noise(spec)

    def _longest_noise(self, spec: Spec) -> float:
        noise = math.sqrt(sum(stage.noise_on_devices**2 for stage in self.stages))
        numbers = sum(entry.size for entry in spec.values())
        return noise * (2 * math.sqrt(numbers) + 20)

    def refusal(self, spec: Spec) -> str | None:
        """Why nobody's update would ever count: noise that devices add is longer than the limit of an update's norm."""
        before = [stage for stage in self.stages if stage.reads == "dense" and stage.noise_on_devices > 0]
        if not before or (largest := self.largest(spec)) <= self.limits.max_update_norm:
            return None
        return (
            f"federation.max_update_norm={self.limits.max_update_norm:g}: with the noise that this budget asks for an "
            f"update of {sum(entry.size for entry in spec.values()):,} numbers has a norm of up to {largest:,.0f}, and "
            "would be left out; give a larger privacy.epsilon, a smaller privacy.clip, or fewer rounds"
        )

    def rows_of_one(self, spec: Spec) -> Mapping[str, float]:
        """The largest norm in one user's part of a sum, of a row of each table, of any other tensor whole.

        Of none without limits of rows.
        """
        return self.row_limits.of(spec, self._coarsest) if self.row_limits else {}

    def rows_of_part(self, spec: Spec) -> Mapping[str, float]:
        """The same of a user's part of a statistic; of none where devices noise their rows."""
        if self.noised_on_devices or self.noised_by_shares:
            return {}
        return RowLimits(lambda width: self.counted_length, 1).of(spec, self._coarsest)

    def units_per_one(self, users: int) -> float | None:
        """Of the grid on which sums are exact; None if they need not be.

        Raises FederationError if it does not hold the sum of `users` users for certain.
        """
        if not isinstance(self.addition, GridAddition | WholeNumbers):
            return None
        if users > MOST_USERS:
            raise FederationError(
                f"{users} users were chosen for a round whose sum is noised, at most {MOST_USERS} can be added up "
                "exactly: lower federation.fraction"
            )
        return self.addition.units_per_one

    def empty(self, like: Tensors, users: int) -> NodeUpdate:
        """The update of nobody yet, of `users` who were asked, for tensors in the shapes of `like`."""
        return NodeUpdate(total=self.addition.zeros(like, users))

    def add(self, given: Contributions, update: NodeUpdate, draws: Draws, in_time: InTime | None = None) -> Tensor:
        """Put users through all stages and add them to the update; those who are left out are counted there.

        In a run whose time is simulated, `in_time` leaves out who is late. Returns bool [U], who was taken.
        """
        kept = []
        for part in given.one_by_one() if self.reads == "dense" and given.rows else (given,):
            done = self.on_devices(part, draws)
            if in_time is not None:
                done = in_time(done, self._sizes(done))
            update.packet_bytes += int(self._sizes(done).sum())
            self.addition.add(done, update.total, draws)
            update.count(done)
            kept.append(done.kept)
        return torch.cat(kept)

    def _sizes(self, given: Contributions) -> NDArray[np.int64]:
        """Bytes of the tensors in each user's own packet."""
        if isinstance(self.addition, WholeNumbers):
            spec, codec = self.sum_format(given.spec, 1)
            return np.full(len(given), codec.size(spec), dtype=np.int64)
        return self.uplink.sizes(given)

    def on_devices(self, given: Contributions, draws: Draws) -> Contributions:
        """What leaves the devices, before it is added up."""
        for stage in self.stages:
            if stage.reads == "norms":
                given = given.with_norms()
            given = stage.on_devices(given, draws)
        return given

    def sum_format(self, spec: Spec, users: int) -> tuple[Spec, Codec]:
        """Specification and codec of the packet that carries the sum of `users` users' updates.

        The sum of one is what the user's own device sends. A sum of several updates is no longer of a lossy codec's
        numbers, nor an exact one of any float32's, and it changes more rows than a list is worth. Numbers with a share
        of noise are whole ones, of one user too.
        """
        if isinstance(self.addition, WholeNumbers) and users <= 1:
            return {
                name: dataclasses.replace(entry, dtype="int32") for name, entry in spec.items()
            }, self.codec.of_sum()
        if users <= 1:
            return spec, self.uplink.packet
        if self.exact:
            whole = {name: dataclasses.replace(entry, dtype="int64") for name, entry in spec.items()}
            return whole, self.codec.of_sum()
        return spec, self.codec.of_sum()

    def on_sum(self, total: Sum, about: Round) -> Sum:
        """What the server goes on with."""
        for stage in self.stages:
            total = stage.on_sum(total, about)
        return total

    def events(self, round: int) -> list[Release]:
        """What a round gives away, of each stage that keeps a promise."""
        events = (stage.event(round) for stage in self.stages)
        return [event for event in events if event is not None]


def plain_stages(limits: Limits) -> Stages:
    """Nothing but the limits and weights: no privacy, and no codec, for nothing is sent."""
    return Stages([], Float32Codec(Float32Config("float32")), limits)
