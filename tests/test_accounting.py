"""Epsilon against values that were worked out elsewhere, and the noise that a budget asks for."""

from __future__ import annotations

import math

import pytest

from fedrec.privacy.accounting import Sampled, calibrated, epsilon_of

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
    found = calibrated(rounds, sampling, epsilon, DELTA)
    assert found == pytest.approx(multiplier, rel=0.01)
    assert epsilon_of({Sampled(found, sampling): rounds}, DELTA) <= epsilon
    assert epsilon_of({Sampled(0.99 * found, sampling): rounds}, DELTA) > epsilon
