"""Laplace and Skellam numbers against their distributions, with fixed keys."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from fedrec.stages.draws import KEY_BYTES
from fedrec.stages.noise import LARGEST_DEVIATION, laplace, skellam

KEY = b"k" * KEY_BYTES


@pytest.mark.parametrize("shape", [(), (0,), (3, 5), (200_000,)])
def test_laplace_numbers_have_their_density(shape: tuple[int, ...]) -> None:
    drawn = laplace(KEY, *shape)
    assert (drawn.shape, drawn.dtype) == (shape, torch.float64)
    if drawn.numel() > 1000:
        assert stats.kstest(drawn.numpy(), "laplace").pvalue > 1e-3
        assert float(drawn.sign().mean()) == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize("variance", [1e-3, 0.3, 4.0, 150.0, 1e4])
def test_skellam_numbers_have_their_probabilities(variance: float) -> None:
    count = 200_000
    drawn = skellam(KEY, variance, count).numpy()
    reach = int(4 * variance**0.5 + 2)
    at = np.arange(-reach, reach + 1)
    expected = stats.skellam.pmf(at, variance / 2, variance / 2)
    width = max(1, int(variance**0.5 / 8))
    edges = np.arange(-reach, reach + 2, width)
    found = np.histogram(drawn, bins=edges)[0]
    ideal = np.add.reduceat(expected, np.arange(0, len(at), width))[: len(found)] * count
    usable = ideal > 8
    assert usable.any()
    rest = np.append(found[usable], count - found[usable].sum())
    ideal = np.append(ideal[usable], count - ideal[usable].sum())
    several = ideal > 1e-6
    assert stats.chisquare(rest[several], ideal[several] * rest[several].sum() / ideal[several].sum()).pvalue > 1e-3


def test_a_sum_of_skellam_numbers_is_one() -> None:
    """What lets devices noise by shares: 50 of variance 3 have the probabilities of one of variance 150."""
    total = sum(skellam(bytes([n]) * KEY_BYTES, 3.0, 20_000) for n in range(50))
    assert isinstance(total, torch.Tensor)
    at = np.arange(-30, 31)
    found = np.array([(total.numpy() == value).sum() for value in at])
    ideal = stats.skellam.pmf(at, 75.0, 75.0) * 20_000
    outside = [20_000 - found.sum()], [20_000 - ideal.sum()]
    assert stats.chisquare(np.append(found, outside[0]), np.append(ideal, outside[1])).pvalue > 1e-3


def test_keys_and_shapes_decide_what_is_drawn() -> None:
    assert torch.equal(skellam(KEY, 5.0, 3, 4), skellam(KEY, 5.0, 3, 4))
    assert not torch.equal(skellam(KEY, 5.0, 50), skellam(b"l" * KEY_BYTES, 5.0, 50))
    assert skellam(KEY, 5.0).shape == ()


@pytest.mark.parametrize("variance", [0.0, -1.0, float("nan"), 2 * LARGEST_DEVIATION**2])
def test_a_variance_without_a_table_is_refused(variance: float) -> None:
    with pytest.raises(ValueError, match="Skellam noise of variance"):
        skellam(KEY, variance, 1)
