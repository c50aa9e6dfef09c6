"""Draws are functions of seed and coordinates alone, they are fair, and they can never change silently."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.core.keys import opaque_keys, simulation_secret
from fedrec.core.rng import counter_bits, counter_integers, counter_normal, counter_uniform, derive, generator

KEYS = np.array([0, 1, 2**63, 2**64 - 1, 12345], dtype=np.uint64)


def test_golden_values() -> None:
    """Every published number rests on these: a change of any of them is a change of all results."""
    assert derive(0) == 0x75DFCD439D7D2B84
    assert derive(0, "cohort") == 0xF621D0079CDD0357
    assert derive(42, "train", 7) == 0x8CB8F80F75E135F7
    bits = [0xB2C584664A89EFBE, 0xFCC41535DE367470, 0x1589EA681F7007F5, 0x779D5249288107EC, 0xED6009D6A9218470]
    assert counter_bits(3, KEYS, 9).tolist() == bits
    uniform = [0.4096987425435795, 0.16053448531426395, 0.34277619566185735]
    assert counter_uniform(3, np.arange(3), 1).tolist() == uniform
    normal = [1.6903643481562367, -1.3085169161362957, 0.3954193451293005]
    np.testing.assert_allclose(counter_normal(3, np.arange(3)), normal, rtol=1e-14)
    assert counter_integers(3, 1000, np.arange(5)).tolist() == [175, 228, 522, 12, 61]
    assert torch.randint(0, 1000, (4,), generator=generator(0, "embedding", "peft")).tolist() == [271, 227, 11, 454]
    keys = [0x5D88E7C43A70B1BB, 0x32A7D38AFECE788C]
    assert opaque_keys(simulation_secret(0), ["1", "user"]).tolist() == keys


def by_hand(seed: int, *coordinates: int) -> int:
    """SplitMix64's finaliser in whole numbers of Python."""
    golden, mask = 0x9E3779B97F4A7C15, 2**64 - 1

    def mix(value: int) -> int:
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & mask
        value = (value ^ value >> 27) * 0x94D049BB133111EB & mask
        return value ^ value >> 31

    for coordinate in coordinates:
        seed = mix((seed + golden & mask) ^ mix(coordinate + golden & mask))
    return seed


@settings(deadline=None)
@given(seed=st.integers(0, 2**64 - 1), coordinates=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4))
def test_equals_a_calculation_by_hand(seed: int, coordinates: list[int]) -> None:
    assert counter_bits(seed, *coordinates).tolist() == [by_hand(seed, *coordinates)]


def test_a_draw_does_not_depend_on_what_is_drawn_beside_it() -> None:
    whole = counter_bits(5, KEYS[:, None, None], np.arange(4)[None, :, None], np.arange(3)[None, None, :])
    assert whole.shape == (5, 4, 3)
    for user, step, position in itertools.product(range(5), range(4), range(3)):
        assert counter_bits(5, KEYS[user], step, position)[0] == whole[user, step, position]
    order = np.array([3, 0, 4])
    np.testing.assert_array_equal(counter_bits(5, KEYS[order], 2, 1), whole[order, 2, 1])
    np.testing.assert_array_equal(counter_bits(5, KEYS[1:3], 2, 1), whole[1:3, 2, 1])


def test_types_of_equal_coordinates_change_nothing() -> None:
    for kind in (np.int32, np.int64, np.uint8, np.uint64):
        np.testing.assert_array_equal(counter_bits(1, np.arange(5).astype(kind)), counter_bits(1, list(range(5))))
    np.testing.assert_array_equal(counter_bits(1, KEYS), counter_bits(1, KEYS.astype(np.int64)))


def test_every_coordinate_its_order_and_the_seed_count() -> None:
    grid = counter_bits(0, np.arange(60)[:, None, None], np.arange(60)[None, :, None], np.arange(20)[None, None, :])
    assert len(np.unique(grid)) == grid.size
    both = np.concatenate([counter_bits(seed, np.arange(1000)) for seed in range(50)])
    assert len(np.unique(both)) == both.size
    assert counter_bits(0, 1, 2)[0] != counter_bits(0, 2, 1)[0] != counter_bits(0, 1)[0]


@pytest.mark.parametrize("along", ["users", "steps", "positions", "seeds"])
def test_uniform_along_every_coordinate(along: str) -> None:
    """A chi-square test of 256 cells, and of pairs of neighbours: 5 standard deviations."""
    n = 100_000
    counter = np.arange(n)
    values = {
        "users": lambda: counter_uniform(1, counter, 0, 0),
        "steps": lambda: counter_uniform(1, 7, counter, 0),
        "positions": lambda: counter_uniform(1, 7, 0, counter),
        "seeds": lambda: np.concatenate([counter_uniform(seed, np.arange(100)) for seed in range(n // 100)]),
    }[along]()
    assert values.min() >= 0
    assert values.max() < 1
    for cells in ((values * 256).astype(int), (values[::2] * 16).astype(int) * 16 + (values[1::2] * 16).astype(int)):
        counts = np.bincount(cells, minlength=256)
        expected = len(cells) / 256
        chi_square = ((counts - expected) ** 2 / expected).sum()
        assert abs(chi_square - 255) < 5 * math.sqrt(2 * 255)


def test_every_bit_is_fair_and_follows_its_coordinate() -> None:
    bits = np.unpackbits(counter_bits(2, np.arange(20_000)).view(np.uint8)).reshape(-1, 64)
    assert np.abs(bits.mean(0) - 0.5).max() < 5 * 0.5 / math.sqrt(20_000)
    turned = counter_bits(2, np.arange(2000)) ^ counter_bits(2, np.arange(2000) ^ 1)
    assert abs(np.unpackbits(turned.view(np.uint8)).mean() - 0.5) < 0.01, "one bit in, half of the bits out"


def test_normal_moments() -> None:
    draws = counter_normal(4, np.arange(400)[:, None], np.arange(500)[None, :])
    n = draws.size
    assert abs(draws.mean()) < 5 / math.sqrt(n)
    assert abs(draws.var() - 1) < 5 * math.sqrt(2 / n)
    assert abs((draws**3).mean()) < 5 * math.sqrt(15 / n)
    assert abs((draws**4).mean() - 3) < 5 * math.sqrt(96 / n)
    assert abs((np.abs(draws) < 1).mean() - 0.6827) < 5 * math.sqrt(0.25 / n)
    assert np.isfinite(draws).all()
    rows = draws - draws.mean(1, keepdims=True)
    assert abs((rows[:-1] * rows[1:]).mean()) < 5 / math.sqrt(n), "neighbouring users are not alike"


@settings(deadline=None)
@given(bound=st.integers(1, 2**45), seed=st.integers(0, 2**64 - 1))
def test_integers_stay_below_their_bound(bound: int, seed: int) -> None:
    drawn = counter_integers(seed, bound, np.arange(20))
    assert drawn.dtype == np.int64
    assert (drawn >= 0).all()
    assert (drawn < bound).all()


@settings(deadline=None)
@given(bound=st.integers(1, 2**45))
def test_the_largest_uniform_stays_below_the_bound(bound: int) -> None:
    assert int(np.float64(1 - 2.0**-53) * bound) < bound


def test_integers_are_uniform_and_take_a_bound_each() -> None:
    counts = np.bincount(counter_integers(0, 7, np.arange(70_000)), minlength=7)
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 6 + 5 * math.sqrt(12)
    bounds = np.array([1, 5, 1000])
    drawn = counter_integers(0, bounds, np.arange(100)[:, None])
    assert drawn.shape == (100, 3)
    assert (drawn < bounds).all()
    assert not drawn[:, 0].any()


def test_paths_of_the_seed_tree_are_distinct() -> None:
    steps: list[str | int] = ["a", "b", "", "1", 1, 0, "0", -1, "a/b", "a/str:b", "/", "\\", "\\/", "int:1"]
    paths = [path for length in range(4) for path in itertools.product(steps, repeat=length)]
    seeds = {derive(root, *path) for root in (0, 1, 11) for path in paths}
    assert len(seeds) == 3 * len(paths)
    assert all(0 <= seed < 2**64 for seed in seeds)


def test_an_integer_is_the_same_step_whoever_made_it() -> None:
    assert derive(np.int64(3), "a", np.uint8(4)) == derive(3, "a", 4)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        derive(0, 1.5)  # type: ignore[arg-type]


def test_generators_of_one_place_are_alike_and_of_two_are_not() -> None:
    before = torch.get_rng_state()
    first, again, other = (torch.randn(5, generator=generator(1, place)) for place in ("a", "a", "b"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_opaque_keys_are_stable_and_need_the_secret() -> None:
    ids = [str(number) for number in range(2000)]
    keys = opaque_keys(5, ids)
    assert keys.dtype == np.uint64
    assert len(np.unique(keys)) == 2000
    np.testing.assert_array_equal(opaque_keys(5, ids[100:103]), keys[100:103])
    assert not np.isin(opaque_keys(6, ids), keys).any()
    assert opaque_keys(5, []).shape == (0,)
