"""How much a run gives away: the epsilon of its releases, at the level of a user, by privacy loss distributions.

Two federations are neighbours if one has a user more (add or remove one). A release is the noised sum of a round, with
the noise multiplier that it had, and the probability with which a user was in the sum: amplification by sampling is
counted only where each user was drawn by itself, in secret (Poisson), as `PoissonSampledDpEvent` has it.

The mathematics is that of the package dp-accounting (PLD, Doroshenko et al., PETS 2022), which only the server imports.

**What no epsilon here covers**: settings that were chosen on validation data; the metrics of rankings; a server that
lies about whom it draws, or keeps what it was sent; and, in a simulation, the list of items that anybody has rated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_TOLERANCE = 1e-3
_LARGEST_MULTIPLIER = 1e6


@dataclass(frozen=True)
class Sampled:
    """A Gaussian release about users of whom each was drawn with a probability.

    Attributes:
        noise_multiplier: Standard deviation of the noise over the most that one user can change the sum by.
        sampling: The probability; 1 where everybody takes part, and wherever the choice was no secret.
    """

    noise_multiplier: float
    sampling: float


def epsilon_of(releases: Mapping[Sampled, int], delta: float) -> float:
    """The epsilon of so many releases of each kind at this delta; 0 of none."""
    from dp_accounting.pld import PLDAccountant

    some = {release: count for release, count in releases.items() if count}
    if not some:
        return 0.0
    accountant = PLDAccountant()
    for release, count in some.items():
        accountant.compose(_event(release), count)
    return float(accountant.get_epsilon(delta))


def calibrated(rounds: int, sampling: float, epsilon: float, delta: float) -> float:
    """The smallest noise multiplier, up to a thousandth, with which `rounds` releases stay within epsilon at delta."""
    low, high = 0.0, _rough(rounds, sampling, epsilon, delta)
    while high - low > _TOLERANCE * high:
        middle = max((low + high) / 2, 0.7 * high)
        if epsilon_of(Counter({Sampled(middle, sampling): rounds}), delta) <= epsilon:
            high = middle
        else:
            low = middle
    return high


def _rough(rounds: int, sampling: float, epsilon: float, delta: float) -> float:
    """A multiplier that is enough, by Renyi divergence: quick, and a little too large."""
    from dp_accounting.rdp import RdpAccountant

    def enough(multiplier: float) -> bool:
        accountant = RdpAccountant()
        accountant.compose(_event(Sampled(multiplier, sampling)), rounds)
        return float(accountant.get_epsilon(delta)) <= epsilon

    low, high = 0.0, 1.0
    while not enough(high):
        low, high = high, 2 * high
        if high > _LARGEST_MULTIPLIER:
            raise ValueError(f"no noise multiplier below {_LARGEST_MULTIPLIER:g} gives epsilon={epsilon:g}")
    while high - low > 0.01 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _event(release: Sampled) -> Any:
    import dp_accounting

    gaussian = dp_accounting.GaussianDpEvent(release.noise_multiplier)
    if release.sampling >= 1:
        return gaussian
    return dp_accounting.PoissonSampledDpEvent(release.sampling, gaussian)
