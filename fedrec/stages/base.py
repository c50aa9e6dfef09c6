"""The contract of a stage: what it reads of users' contributions, what it does on devices, and what on their sum."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from fedrec.core.tensors import Tensors
from fedrec.stages.contributions import Contributions
from fedrec.stages.draws import Draws
from fedrec.stages.sums import Sum

Reads = Literal["nothing", "norms", "rows", "dense"]
"""What of the users' values a stage needs, from the cheapest on: nothing; the norm of each update; the changed rows of
tables; each user's whole tensors, formed one user after the other."""


class Round(NamedTuple):
    """What the server's stages know of a round.

    Attributes:
        number: Of the round.
        fraction: Share of the users who are chosen in it.
        draws: The server's randomness.
    """

    number: int
    fraction: float
    draws: Draws


@dataclass(frozen=True)
class Release:
    """What a round gives away about any one user, for whoever keeps the account.

    Attributes:
        mechanism: Which noise was added: `gaussian`, `laplace` or `skellam`.
        noise_multiplier: Its standard deviation (the scale of `laplace`) over the most that one user can change what is
            noised (in the norm that belongs to the mechanism).
        in_secret: Whether only the server knows who was chosen, each user by itself: then the choice is part of the
            account.
        grid: Of `skellam`, the most that one user can change the sum by in whole numbers.
    """

    mechanism: str
    noise_multiplier: float
    in_secret: bool = True
    grid: float | None = None


class Shares(ABC):
    """Whole numbers that devices add to their own on a public grid: each a share of the noise on the sum.

    Attributes:
        units_per_one: Grid points in a distance of 1, a power of two.
        most_units: The largest number of one user, without its noise, in grid points.
        variance: Of one user's share of the noise on every number, in grid points, squared.
    """

    units_per_one: float
    most_units: float
    variance: float

    @abstractmethod
    def of(self, units: Tensors, user: int, draws: Draws) -> Tensors:
        """The share of one user's device: int64 for each tensor, drawn once only, for these numbers."""


class Stage:
    """Something that is done to what users give, on their devices, on the sum at the server, or both.

    The values on a device go through the stages that read `rows` or `dense`, then the codec's rounding, the limits and
    the weights, then the stages that read `norms` or `nothing`: the norm that these see is that of what travels, and
    the weight that they see is the one that counts (`fedrec.stages.chain`).
    """

    reads: ClassVar[Reads] = "nothing"
    """What `on_devices` needs."""

    @property
    def noises_sum(self) -> bool:
        """Whether `on_sum` draws noise.

        Sums are then exact, the same to the bit wherever users live (`fedrec.stages.addition.GridAddition`).
        """
        return False

    @property
    def hides_rows(self) -> bool:
        """Whether noise is to hide, among others, which rows a user has changed: then no packet may tell them."""
        return self.noises_sum

    @property
    def alike(self) -> bool:
        """Whether noise is drawn for what users give or for their sum, which must then be the same wherever they live.

        To the bit, but for what a processor sums in another order.
        """
        return self.noises_sum or self.noise_on_devices > 0

    @property
    def noise_on_devices(self) -> float:
        """Standard deviation of the noise that a device adds to every number of its user's update; 0: none."""
        return 0.0

    @property
    def shares(self) -> Shares | None:
        """Where devices noise their numbers on a grid, and only the sum of their noise protects: grid and noise."""
        return None

    @property
    def survivors(self) -> int:
        """Users whose shares of noise a sum must have: of fewer than that nobody may know it."""
        return 0

    @property
    def max_norm(self) -> float | None:
        """The largest norm of a user's update after `on_devices`, where the stage sees to that.

        Before its weight, and before the noise of devices.
        """
        return None

    @property
    def tells(self) -> bool:
        """Whether devices may tell examples, losses and whom they left out beside the sum, as they are."""
        return True

    def on_devices(self, given: Contributions, draws: Draws) -> Contributions:
        """What these users give instead. It may depend on each user alone, never on who is beside it."""
        return given

    def on_sum(self, total: Sum, about: Round) -> Sum:
        """What the server goes on with instead of the sum; also of a round in which nobody took part."""
        return total

    def event(self, round: int) -> Release | None:
        """What the round gives away, if the stage keeps a promise about it."""
        return None
