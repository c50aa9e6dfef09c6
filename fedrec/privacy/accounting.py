"""How much a run gives away: the epsilon of its releases, at the level of a user.

A release is a noised sum, or what a device noised, with the noise multiplier that it had, and the probability with
which a user was in it: amplification by sampling is counted only where each user was drawn by itself, in secret
(Poisson), as `PoissonSampledDpEvent` has it. What two neighbouring federations differ in, the mechanism says (`unit`).

Normal and Laplace noise are accounted by privacy loss distributions (Doroshenko et al., PETS 2022). That of a Laplace
release is of one number that changes by the whole of the clip: if it is spread over several, less is given away. There
is no such distribution for Skellam noise on many numbers: it is accounted by Renyi divergence (Agarwal, Kairouz and
Liu, NeurIPS 2021, theorem 3.5), in the whole orders for which the theorem holds. The mathematics is that of the package
dp-accounting, which only the server imports.

**What no epsilon here covers**: settings that were chosen on validation data; the metrics of rankings; a server that
lies about whom it draws, or keeps what it was sent; and, in a simulation, the list of items that anybody has rated.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from fedrec.core.errors import ConfigError
from fedrec.privacy.divergences import divergence
from fedrec.stages.base import Release

_TOLERANCE = 1e-3
_LARGEST_MULTIPLIER = 1e6
_ORDERS = [*range(2, 64), *range(64, 257, 8), 320, 384, 512, 768, 1024]


@dataclass(frozen=True)
class Sampled:
    """A release about users of whom each was drawn with a probability.

    Attributes:
        noise_multiplier: Standard deviation of the noise (the scale of `laplace`) over the most that one user can
            change what is noised.
        sampling: The probability; 1 where everybody takes part, and wherever the choice was no secret.
        mechanism: `gaussian`, `laplace` or `skellam`.
        grid: Of `skellam`, the most that one user can change the sum by (its Euclidean norm), in whole numbers.
    """

    noise_multiplier: float
    sampling: float
    mechanism: str = "gaussian"
    grid: float | None = None

    @staticmethod
    def of(release: Release, fraction: float) -> Sampled:
        """A release to which each user was chosen with the probability `fraction`."""
        sampling = fraction if release.in_secret else 1.0
        return Sampled(release.noise_multiplier, sampling, release.mechanism, release.grid)


def epsilon_of(releases: Mapping[Sampled, int], delta: float) -> float:
    """The epsilon of so many releases of each kind at this delta; 0 of none.

    Raises ValueError for kinds that cannot be composed.
    """
    some = {release: count for release, count in releases.items() if count}
    if not some:
        return 0.0
    kinds = {release.mechanism for release in some}
    if kinds == {"skellam"}:
        return _by_renyi(some, delta)
    if "skellam" in kinds:
        raise ValueError(f"releases of {sorted(kinds)} have no account together")
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant()
    for release, count in some.items():
        accountant.compose(_event(release), count)
    return float(accountant.get_epsilon(delta))


@cache
def calibrated(release: Release, rounds: int, fraction: float, epsilon: float, delta: float) -> float:
    """The smallest noise multiplier, up to a thousandth, with which `rounds` releases stay within epsilon at delta.

    Args:
        release: Of the kind; its own multiplier does not matter.
        rounds: How many there are.
        fraction: The probability with which a user is chosen.
        epsilon: The budget.
        delta: Of the same promise.

    Raises ConfigError if no noise is enough.
    """

    def spent(multiplier: float) -> float:
        kind = Sampled.of(replace(release, noise_multiplier=multiplier), fraction)
        return epsilon_of(Counter({kind: rounds}), delta)

    high = _enough(release, rounds, fraction, epsilon, delta)
    least = spent(high)
    while least > epsilon:  # the accountant rounds up, and may find a little more than the closed form does
        high *= 1 + _TOLERANCE
        least = spent(high)
    low = 0.7 * high
    while (most := spent(low)) <= epsilon:
        high, least, low = low, most, 0.7 * low

    def narrow(guess: float) -> None:
        nonlocal low, most, high, least
        if (found := spent(guess)) <= epsilon:
            high, least = guess, found
        else:
            low, most = guess, found

    while high - low > _TOLERANCE * high:
        # Epsilon is nearly a power of the multiplier: the guess is near, and then its neighbour settles it.
        share = 0.5
        if 0 < least < most < math.inf:
            share = math.log(most / epsilon) / math.log(most / least)
        guess = low * (high / low) ** share * (1 + _TOLERANCE / 4)
        narrow(min(max(guess, low * (1 + _TOLERANCE / 2)), high * (1 - _TOLERANCE / 2)))
        if high - low > _TOLERANCE * high:
            narrow(high * (1 - 0.9 * _TOLERANCE))
    return high


def _enough(release: Release, rounds: int, fraction: float, epsilon: float, delta: float) -> float:
    """A multiplier that is enough: quick to find, and a little too large."""
    if release.mechanism == "laplace":  # epsilons of single rounds add up
        return rounds / epsilon

    def enough(multiplier: float) -> bool:
        kind = Sampled.of(replace(release, noise_multiplier=multiplier), fraction)
        if kind.mechanism == "skellam":
            return _by_renyi({kind: rounds}, delta) <= epsilon
        from dp_accounting.rdp import RdpAccountant

        accountant = RdpAccountant(_ORDERS)  # fractional orders are slow, and hardly ever the best
        accountant.compose(_event(kind), rounds)
        return float(accountant.get_epsilon(delta)) <= epsilon

    low, high = 0.0, 1.0
    while not enough(high):
        low, high = high, 2 * high
        if high > _LARGEST_MULTIPLIER:
            raise ConfigError(
                [
                    f"privacy.epsilon={epsilon:g}: at privacy.delta={delta:g} no noise is enough for {rounds} "
                    f"releases, up to {_LARGEST_MULTIPLIER:g} times what one user can change; give more epsilon, a "
                    "larger delta, or fewer rounds"
                ]
            )
    while high - low > 0.01 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _by_renyi(releases: Mapping[Sampled, int], delta: float) -> float:
    from dp_accounting.rdp import compute_epsilon

    divergences = [
        sum(count * skellam_divergence(kind, order) for kind, count in releases.items()) for order in _ORDERS
    ]
    return float(compute_epsilon(_ORDERS, divergences, delta)[0])


def skellam_divergence(release: Sampled, order: int) -> float:
    """The Renyi divergence of a whole order, at least 2, between the releases of two neighbouring federations.

    Raises ValueError for a release of another mechanism, or a sampled one.
    """
    if release.mechanism != "skellam" or release.sampling < 1:
        raise ValueError(f"{release} is no Skellam release of everybody")
    return divergence(Release("skellam", release.noise_multiplier, grid=release.grid), order)


def _event(release: Sampled) -> Any:
    import dp_accounting

    kinds = {"gaussian": dp_accounting.GaussianDpEvent, "laplace": dp_accounting.LaplaceDpEvent}
    event = kinds[release.mechanism](release.noise_multiplier)
    if release.sampling >= 1:
        return event
    return dp_accounting.PoissonSampledDpEvent(release.sampling, event)
