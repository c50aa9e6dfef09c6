"""Epsilon against values that were worked out elsewhere, and the noise that a budget asks for."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from fedrec.core.errors import ConfigError
from fedrec.privacy.accounting import Sampled, calibrated, epsilon_of, skellam_divergence
from fedrec.stages.base import Release

DELTA = 1e-5


def test_a_sampled_gaussian_has_the_epsilon_of_privacy_loss_distributions() -> None:
    """100 of 6,040 users, 200 rounds: 1.53, where Renyi divergence gives 1.90."""
    assert epsilon_of({Sampled(1.0, 100 / 6_040): 200}, DELTA) == pytest.approx(1.53, abs=0.01)


@pytest.mark.parametrize(("multiplier", "epsilon"), [(26.4, 1.0), (14.1, 2.0), (6.3, 5.0)])
def test_without_sampling_it_is_that_of_one_gaussian(multiplier: float, epsilon: float) -> None:
    """50 rounds of everybody are one release with a noise smaller by the root of 50, whose delta has a closed form."""
    found = epsilon_of({Sampled(multiplier, 1.0): 50}, DELTA)
    assert found == pytest.approx(epsilon, rel=0.02)
    assert _delta_of_a_gaussian(multiplier / math.sqrt(50), found) == pytest.approx(DELTA, rel=0.02)


def _delta_of_a_gaussian(deviation: float, epsilon: float) -> float:
    """Balle and Wang (ICML 2018), theorem 8, for a sensitivity of 1."""
    left, right = 1 / (2 * deviation) - epsilon * deviation, -1 / (2 * deviation) - epsilon * deviation
    return _phi(left) - math.exp(epsilon) * _phi(right)


def _phi(x: float) -> float:
    return math.erfc(-x / math.sqrt(2)) / 2


def test_an_unsecret_choice_of_the_same_users_would_be_no_amplification() -> None:
    """What it would cost to count a cohort as sampled that every device could work out."""
    assert epsilon_of({Sampled(10.0, 1.0): 200}, DELTA) > 10 * epsilon_of({Sampled(10.0, 100 / 6_040): 200}, DELTA)


def test_kinds_of_releases_add_up() -> None:
    one, other = Sampled(5.0, 1.0), Sampled(12.0, 1.0)
    both = epsilon_of({one: 3, other: 4}, DELTA)
    together = 1 / math.sqrt(3 / 5.0**2 + 4 / 12.0**2)
    assert both == pytest.approx(epsilon_of({Sampled(together, 1.0): 1}, DELTA), rel=0.01)
    assert epsilon_of({}, DELTA) == 0.0
    assert epsilon_of({one: 0}, DELTA) == 0.0


@pytest.mark.parametrize(
    ("rounds", "sampling", "epsilon", "multiplier"), [(50, 0.1, 1.0, 2.93), (50, 1.0, 2.0, 14.1), (50, 0.1, 5.0, 1.015)]
)
def test_the_noise_is_what_the_budget_asks_for(rounds: int, sampling: float, epsilon: float, multiplier: float) -> None:
    found = calibrated(Release("gaussian", 1.0), rounds, sampling, epsilon, DELTA)
    assert found == pytest.approx(multiplier, rel=0.01)
    assert epsilon_of({Sampled(found, sampling): rounds}, DELTA) <= epsilon
    assert epsilon_of({Sampled(0.99 * found, sampling): rounds}, DELTA) > epsilon


@pytest.mark.parametrize(
    ("release", "rounds", "epsilon", "delta"),
    [
        (Release("gaussian", 1.0), 1, 0.1, 0.5),
        (Release("laplace", 1.0), 1, 1.0, 0.9),
        (Release("skellam", 1.0, in_secret=False, grid=1000.0), 1, 0.001, 1e-5),
    ],
)
def test_where_a_little_more_noise_gives_nothing_away_the_least_that_is_enough_is_found(
    release: Release, rounds: int, epsilon: float, delta: float
) -> None:
    found = calibrated(release, rounds, 1.0, epsilon, delta)
    for factor, within in ((1.0, True), (0.99, False)):
        kind = Sampled.of(dataclasses.replace(release, noise_multiplier=factor * found), 1.0)
        assert (epsilon_of({kind: rounds}, delta) <= epsilon) is within


def test_a_budget_for_which_no_noise_is_enough_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"privacy\.epsilon=0\.001: at privacy\.delta=1e-10 no noise is enough"):
        calibrated(Release("gaussian", 1.0), 100, 1.0, 0.001, 1e-10)


@pytest.mark.parametrize(("epsilon", "rounds", "delta"), [(3.0, 7, 1e-12), (1.00005, 1, 1e-9), (5.0, 3, 1e-6)])
def test_calibrated_laplace_noise_is_within_the_budget_by_its_own_accountant(
    epsilon: float, rounds: int, delta: float
) -> None:
    found = calibrated(Release("laplace", 1.0), rounds, 1.0, epsilon, delta)
    assert epsilon_of({Sampled(found, 1.0, "laplace"): rounds}, delta) <= epsilon
    assert found == pytest.approx(rounds / epsilon, rel=0.01)


# ---- Laplace and Skellam noise ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("multiplier", [0.25, 1.0, 4.0])
def test_one_laplace_release_has_the_epsilon_of_its_scale(multiplier: float) -> None:
    """At delta = 0 it is 1 / scale; with a delta the closed form is 1 / scale + 2 log(1 - delta) (Sommer et al.)."""
    found = epsilon_of({Sampled(multiplier, 1.0, "laplace"): 1}, DELTA)
    assert found == pytest.approx(1 / multiplier + 2 * math.log1p(-DELTA), abs=2e-4)


def test_laplace_releases_cost_no_more_than_the_sum_of_their_epsilons() -> None:
    some = {Sampled(10.0, 1.0, "laplace"): 50}
    assert 2.0 < epsilon_of(some, DELTA) < 50 / 10.0
    assert epsilon_of({Sampled(10.0, 0.1, "laplace"): 50}, DELTA) < epsilon_of(some, DELTA) / 3
    found = calibrated(Release("laplace", 1.0), 50, 1.0, 3.0, DELTA)
    assert 2.99 < epsilon_of({Sampled(found, 1.0, "laplace"): 50}, DELTA) <= 3.0


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 1.6])
def test_a_change_that_is_spread_over_numbers_gives_less_away(epsilon: float) -> None:
    """Why the accountant may take one number that changes by the whole clip: the deltas of two halves are smaller."""
    shift, step = 2.0, 0.02
    at = np.arange(-14, 16, step) + step / 2

    def density(x: np.ndarray, centre: float) -> np.ndarray:
        return stats.laplace.pdf(x, centre) * step

    whole = np.maximum(density(at, shift) - math.exp(epsilon) * density(at, 0), 0).sum()
    halves = [np.multiply.outer(density(at, centre), density(at, centre)) for centre in (shift / 2, 0.0)]
    assert np.maximum(halves[0] - math.exp(epsilon) * halves[1], 0).sum() < whole


@pytest.mark.parametrize(("change", "variance"), [(1, 0.5), (1, 4.0), (3, 2.0), (5, 40.0), (40, 400.0)])
@pytest.mark.parametrize("order", [2, 3, 8, 20])
def test_the_divergence_of_a_skellam_release_is_within_its_theorem(change: int, variance: float, order: int) -> None:
    """Against the sum over the probabilities themselves, of one number that changes by a whole number."""
    at = np.arange(-2000, 2001)
    here, there = (stats.skellam.logpmf(at - moved, variance / 2, variance / 2) for moved in (0, change))
    with np.errstate(invalid="ignore"):
        terms = order * here - (order - 1) * there
    exact = float(np.logaddexp.reduce(terms[np.isfinite(terms)])) / (order - 1)
    bound = skellam_divergence(Sampled(math.sqrt(variance) / change, 1.0, "skellam", float(change)), order)
    assert exact <= bound * (1 + 1e-9)
    if variance >= 40 and order < 8:
        assert bound < 1.1 * exact, "and not by much where noise is larger than the change"


def test_skellam_noise_on_a_fine_grid_costs_what_normal_noise_does_by_renyi_divergence() -> None:
    """50 rounds with multiplier 6.3 are 5.0 by privacy loss distributions; a coarse grid costs more."""
    fine, coarse = (epsilon_of({Sampled(6.3, 1.0, "skellam", grid): 50}, DELTA) for grid in (2.0**14, 1.0))
    assert fine == pytest.approx(GAUSSIAN_BY_RENYI, abs=0.001)
    assert coarse > fine + 0.01
    found = calibrated(Release("skellam", 1.0, in_secret=False, grid=2.0**14), 50, 0.1, 5.0, DELTA)
    assert epsilon_of({Sampled(found, 1.0, "skellam", 2.0**14): 50}, DELTA) <= 5.0
    assert found == pytest.approx(6.746, abs=0.01), "the share of the users who are chosen makes no difference"


GAUSSIAN_BY_RENYI = 5.402
"""Of dp-accounting's RdpAccountant for the same multiplier and rounds."""


def test_releases_without_an_account_together_are_refused() -> None:
    with pytest.raises(ValueError, match="no account together"):
        epsilon_of({Sampled(6.3, 1.0, "skellam", 100.0): 1, Sampled(6.3, 1.0): 1}, DELTA)
    with pytest.raises(ValueError, match="no Skellam release of everybody"):
        epsilon_of({Sampled(6.3, 0.1, "skellam", 100.0): 1}, DELTA)
