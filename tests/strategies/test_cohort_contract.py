"""The contract of ways to choose the users of a round, over every member of the family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from federation.cohorts.base import CohortSampling, Roots
from fedrec.config.compose import compose
from fedrec.config.describe import load_member
from fedrec.core.errors import ConfigError
from fedrec.core.registry import cohorts

KEYS = np.random.default_rng(0).integers(0, 2**64, 300, dtype=np.uint64)
ROOTS = Roots(public=7, secret=2**200 + 1)


def made(name: str) -> CohortSampling:
    sampling: CohortSampling = cohorts.get(name)(load_member("cohort", name))
    return sampling


def chosen(
    sampling: CohortSampling, keys: Any = KEYS, round: int = 1, fraction: float = 0.2, roots: Any = ROOTS
) -> set:
    places = sampling.choose(keys, round, fraction, roots)
    assert places.dtype == np.int64
    assert (np.diff(places) > 0).all()
    return set(keys[places].tolist())


@pytest.mark.parametrize("name", cohorts.names())
def test_neither_the_order_of_the_keys_nor_the_global_generator_matters(name: str) -> None:
    sampling, state = made(name), np.random.get_state()[1].copy()  # noqa: NPY002
    for round in range(1, 6):
        assert chosen(sampling, KEYS[::-1], round) == chosen(sampling, KEYS, round)
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002


@pytest.mark.parametrize("name", cohorts.names())
def test_every_user_has_the_same_chance_in_every_round(name: str) -> None:
    sampling, rounds = made(name), 400
    counts = dict.fromkeys(KEYS.tolist(), 0)
    for round in range(rounds):
        for key in chosen(sampling, round=round):
            counts[key] += 1
    error = (0.2 * 0.8 / rounds) ** 0.5
    shares = np.array(list(counts.values())) / rounds
    assert (abs(shares - 0.2) < 5 * error).all()
    assert shares.mean() == pytest.approx(0.2, abs=5 * error / len(KEYS) ** 0.5 + 1e-12)


@pytest.mark.parametrize("name", cohorts.names())
@pytest.mark.parametrize("fraction", [1.0, 1.5])
def test_everybody_is_chosen_if_everybody_is_wanted(name: str, fraction: float) -> None:
    assert chosen(made(name), fraction=fraction) == set(KEYS.tolist())


@pytest.mark.parametrize("name", cohorts.names())
def test_a_round_is_complete_with_no_more_than_were_chosen(name: str) -> None:
    sampling = made(name)
    for fraction in (0.001, 0.2, 1.0):
        count = len(chosen(sampling, fraction=fraction))
        assert sampling.awaited(len(KEYS), count, fraction) <= max(1, count)
        if count:
            assert sampling.awaited(len(KEYS), count, fraction) == count, "nobody was asked beyond the fraction"


@pytest.mark.parametrize("name", cohorts.names())
def test_its_default_can_run(name: str) -> None:
    assert compose([f"cohort={name}"], base=Path("/somewhere")).cohort.name == name


def test_poisson_needs_the_secret_and_fixed_the_seed() -> None:
    fixed, poisson = made("fixed"), made("poisson")
    other_secret, other_seed = ROOTS._replace(secret=3), ROOTS._replace(public=8)
    assert chosen(poisson, roots=other_secret) != chosen(poisson) == chosen(poisson, roots=other_seed)
    assert chosen(fixed, roots=other_seed) != chosen(fixed) == chosen(fixed, roots=other_secret)


def test_poisson_cohorts_have_the_size_of_independent_draws() -> None:
    """A binomial number of users, any two of whom are as often together as chance has it."""
    poisson, rounds, n, q = made("poisson"), 2_000, 20, 0.3
    hits = np.zeros((rounds, n))
    for round in range(rounds):
        hits[round, poisson.choose(KEYS[:n], round, q, ROOTS)] = 1
    sizes = hits.sum(1)
    assert sizes.mean() == pytest.approx(n * q, abs=5 * (n * q * (1 - q) / rounds) ** 0.5)
    assert sizes.var() == pytest.approx(n * q * (1 - q), rel=0.15)
    together = (hits.T @ hits / rounds)[~np.eye(n, dtype=bool)]
    assert abs(together - q * q).max() < 5 * (q * q * (1 - q * q) / rounds) ** 0.5


def test_poisson_may_choose_nobody() -> None:
    poisson = made("poisson")
    assert chosen(poisson, fraction=1e-12) == set()
    assert chosen(poisson, keys=KEYS[:0]) == set()
    assert poisson.awaited(300, 0, 0.5) == 0


def test_poisson_refuses_over_sampling() -> None:
    with pytest.raises(ConfigError, match=r"federation\.over_sampling=0\.5: with cohort=poisson"):
        compose(["cohort=poisson", "federation.over_sampling=0.5"], base=Path("/somewhere"))
