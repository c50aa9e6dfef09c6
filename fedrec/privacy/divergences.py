"""Renyi divergences of noised releases, which add up over any releases, and the epsilon that follows from them.

Plain arithmetic, for both sides: a site adds up what its users' updates have given away over all runs, and has no
package for it. Divergences are those of Mironov (CSF 2017), between what two neighbouring federations would release.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from fedrec.stages.base import Release

ORDERS = (*range(2, 33), *range(34, 65, 2), *range(72, 257, 8), 320, 384, 512, 768, 1024)
"""Whole ones, for which all bounds below hold."""


def divergence(release: Release, order: int) -> float:
    """The Renyi divergence of a whole order, at least 2, of one release in which everybody takes part.

    Raises ValueError for a mechanism that there is not, or a Skellam release without its grid.
    """
    if release.mechanism == "gaussian":
        return order / (2 * release.noise_multiplier**2)
    if release.mechanism == "laplace":
        return _laplace(1 / release.noise_multiplier, order)
    if release.mechanism == "skellam" and release.grid is not None:
        return _skellam(release.noise_multiplier, release.grid, order)
    raise ValueError(f"{release} has no divergence that is known here")


def epsilon(releases: Mapping[Release, int], delta: float) -> float:
    """The epsilon at `delta` of so many releases of each kind, in each of which the user took part; 0 of none.

    The least over `ORDERS` of what the divergence of each allows (Canonne, Kamath and Steinke, NeurIPS 2020,
    proposition 12). Laplace releases alone are also bounded by the sum of their epsilons, at any delta.
    """
    some = {release: count for release, count in releases.items() if count}
    if not some:
        return 0.0
    found = min(
        _converted(order, sum(count * divergence(release, order) for release, count in some.items()), delta)
        for order in ORDERS
    )
    if all(release.mechanism == "laplace" for release in some):
        found = min(found, sum(count / release.noise_multiplier for release, count in some.items()))
    return max(0.0, found)


def _converted(order: int, total: float, delta: float) -> float:
    return total + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)


def _laplace(pure: float, order: int) -> float:
    """Of Laplace noise with this epsilon (Mironov, proposition 6), from logarithms, for the terms may be huge."""
    up = math.log(order / (2 * order - 1)) + (order - 1) * pure
    down = math.log((order - 1) / (2 * order - 1)) - order * pure
    return (max(up, down) + math.log1p(math.exp(-abs(up - down)))) / (order - 1)


def _skellam(multiplier: float, grid: float, order: int) -> float:
    """Of Skellam noise (Agarwal, Kairouz and Liu, NeurIPS 2021, theorem 3.5).

    With L2 sensitivity s in whole numbers the L1 sensitivity is at most s squared, whatever the number of numbers.
    """
    squared = grid**2
    variance = multiplier**2 * squared
    more = min(((2 * order - 1) * squared + 6 * squared) / (4 * variance**2), 3 * squared / (2 * variance))
    return order * squared / (2 * variance) + more
