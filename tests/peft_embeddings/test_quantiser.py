"""Residual quantisation: k-means that copes with any catalogue, and an RQ-VAE that only improves on it."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import Tensor

from fedrec.core.rng import generator
from peft_embeddings.quantiser import rqvae
from peft_embeddings.quantiser.kmeans import kmeans, nearest
from peft_embeddings.quantiser.residual import additive_codebooks, decode, encode, residual_kmeans
from peft_embeddings.quantiser.rqvae import Training, train_quantiser

SHORT = {"hidden": (32,), "steps": 150, "batch_size": 64, "lr": 0.01, "commitment": 0.25}


def points(n: int = 300, dim: int = 6, seed: int = 0) -> Tensor:
    """Vectors around a curved surface, so that there is something to learn."""
    rng = generator(seed, "points")
    flat = torch.randn(n, dim // 2, generator=rng)
    bent = torch.cat([flat, flat.sin() * flat.roll(1, 1)], dim=1)
    return bent + 0.05 * torch.randn(bent.shape, generator=rng)


def awkward() -> dict[str, Tensor]:
    """What catalogues bring: no text, the same text, few items, one item."""
    some = points(60)
    return {
        "zero vectors": torch.cat([some, torch.zeros(20, 6)]),
        "nothing but zero": torch.zeros(30, 6),
        "duplicates": some[torch.arange(60) % 7],
        "fewer than codes": some[:5],
        "one": some[:1],
        "tiny numbers": some * 1e-18,
        "large numbers": some * 1e15,
    }


def trained(vectors: Tensor, levels: int = 3, size: int = 8, seed: int = 0, **changes: Any) -> rqvae.Quantiser:
    return train_quantiser(vectors, levels, size, Training(**{**SHORT, **changes}), generator(seed, "rq"))


# ---- k-means --------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 40), k=st.integers(1, 12), seed=st.integers(0, 1000))
def test_nearest_is_the_first_of_least_distance(n: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Small whole numbers: ties are frequent and exact.
    some, centres = rng.integers(-2, 3, (n, 3)), rng.integers(-2, 3, (k, 3))
    expected = [int(np.argmin([((point - centre) ** 2).sum() for centre in centres])) for point in some]
    assert nearest(torch.from_numpy(some).float(), torch.from_numpy(centres).float()).tolist() == expected


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = nearest(points(), points(20, seed=1))
    monkeypatch.setattr("peft_embeddings.quantiser.kmeans._ROWS_AT_ONCE", 7)
    assert torch.equal(nearest(points(), points(20, seed=1)), whole)


def test_k_means_is_as_good_as_scikit_learns() -> None:
    some = points(500)
    ours = min(_inertia(some, kmeans(some, 10, generator(seed), iterations=100)) for seed in range(10))
    theirs = KMeans(10, n_init=10, random_state=0).fit(some.numpy()).inertia_
    assert ours <= 1.02 * theirs


def _inertia(some: Tensor, centres: Tensor) -> float:
    return float((some - centres[nearest(some, centres)]).square().sum())


def test_every_centre_is_the_mean_of_its_points() -> None:
    some = points()
    centres = kmeans(some, 9, generator(0), iterations=200)
    owner = nearest(some, centres)
    for row, centre in enumerate(centres):
        torch.testing.assert_close(centre, some[owner == row].mean(0))


@pytest.mark.parametrize("case", awkward())
def test_k_means_of_any_points(case: str) -> None:
    some = awkward()[case]
    centres = kmeans(some, 16, generator(0))
    assert centres.shape == (16, 6)
    assert centres.isfinite().all()
    different = len(np.unique(some.numpy(), axis=0))
    used = nearest(some, centres).unique()  # type: ignore[no-untyped-call]
    if different <= 16:
        torch.testing.assert_close(centres[nearest(some, centres)], some)  # each has a centre of its own
        assert len(used) == different
        assert not centres[different:].any()
    else:
        assert len(used) == 16


def test_a_centre_that_loses_its_points_takes_over_the_worst_served(monkeypatch: pytest.MonkeyPatch) -> None:
    some = torch.tensor([[0.0], [0.1], [10.0], [10.1], [30.0]])
    lost = torch.tensor([[5.0], [6.0], [1000.0]])
    monkeypatch.setattr("peft_embeddings.quantiser.kmeans._spread", lambda *_: lost)
    centres = kmeans(some, 3, generator(0))
    assert sorted(round(float(centre), 3) for centre in centres) == [0.05, 10.05, 30.0]


# ---- residual codes -------------------------------------------------------------------------------------------------


def test_codes_are_the_nearest_rows_level_after_level() -> None:
    some, codebooks = points(40), torch.randn(3, 5, 6, generator=generator(0))
    codes = encode(some, codebooks)
    for vector, code in zip(some, codes, strict=True):
        left = vector.clone()
        for level, row in enumerate(code.tolist()):
            distances = [(left - other).norm() for other in codebooks[level]]
            assert row == int(np.argmin(distances))
            left -= codebooks[level, row]
        torch.testing.assert_close(decode(code[None], codebooks)[0], vector - left)


def test_each_level_lowers_the_error() -> None:
    some = points()
    codebooks = residual_kmeans(some, 4, 8, generator(0))
    firsts = [codebooks[:levels] for levels in range(1, 5)]
    errors = [(decode(encode(some, part), part) - some).square().mean() for part in firsts]
    assert all(after < 0.8 * before for before, after in pairwise(errors))


def test_additive_codebooks_are_the_least_squares_solution() -> None:
    some = points(80)
    codes = torch.randint(0, 5, (80, 3), generator=generator(0))
    codebooks = additive_codebooks(some, codes, 7, sweeps=200)
    assert codebooks.shape == (3, 7, 6)
    assert not codebooks[:, 5:].any(), "rows that nobody reads stay zero"
    design = np.concatenate([np.eye(7)[codes[:, level]] for level in range(3)], axis=1)
    least = design @ np.linalg.lstsq(design, some.numpy().astype(np.float64))[0]
    np.testing.assert_allclose(decode(codes, codebooks).numpy(), least, atol=1e-4)


# ---- RQ-VAE ---------------------------------------------------------------------------------------------------------


def test_without_training_it_is_residual_k_means() -> None:
    some = points()
    made = trained(some, steps=0)
    codebooks = residual_kmeans(some / made.scale, 3, 8, generator(0, "rq"))
    assert torch.equal(made.codebooks, codebooks)
    assert torch.equal(made.codes(some), encode(some / made.scale, codebooks))
    torch.testing.assert_close(made.reconstruct(made.codes(some)), decode(made.codes(some), codebooks) * made.scale)


def test_training_lowers_the_error_and_the_codebooks_do_train() -> None:
    """In published code the codebooks stay where k-means put them."""
    some = points(600)
    start, made = trained(some, steps=0), trained(some, steps=400)
    assert made.error(some) < 0.9 * start.error(some)
    assert ((made.codebooks - start.codebooks).abs().amax(2) > 1e-3).float().mean() > 0.9
    assert any(weight.any() for weight, _ in (made.encoder[-1], made.decoder[-1]))


@pytest.mark.parametrize("lr", [0.001, 10.0])
def test_training_never_makes_it_worse(lr: float) -> None:
    some = points()
    assert trained(some, lr=lr).error(some) <= trained(some, steps=0).error(some)


def test_the_loss_and_its_gradients_are_those_of_the_formula() -> None:
    """Item by item and level by level, with `sg` as a constant."""
    latents = points(20).requires_grad_()
    codebooks = torch.randn(2, 5, 6, generator=generator(0)).requires_grad_()
    loss, quantised, codes, _ = rqvae._quantise(latents, codebooks, 0.25)
    assert torch.equal(torch.stack(codes, 1), encode(latents.detach(), codebooks.detach()))
    to_latents, to_codebooks = torch.zeros(20, 6), torch.zeros(2, 5, 6)
    expected, sums = 0.0, torch.zeros(20, 6)
    for item, code in enumerate(torch.stack(codes, 1).tolist()):
        left = latents[item].detach().clone()
        for level, row in enumerate(code):
            gap = left - codebooks[level, row].detach()
            expected += 1.25 * float(gap @ gap) / 20
            to_codebooks[level, row] -= 2 * gap / 20
            to_latents[item] += 0.25 * 2 * gap / 20
            sums[item] += codebooks[level, row].detach()
            left = gap
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(quantised, sums)
    assert not quantised.requires_grad, "the decoder's gradient goes straight to the latents, not to the codebooks"
    found = torch.autograd.grad(loss, [latents, codebooks])
    torch.testing.assert_close(found, (to_latents, to_codebooks), atol=1e-5, rtol=1e-4)


def test_codes_that_no_item_takes_are_revived(monkeypatch: pytest.MonkeyPatch) -> None:
    some = points(400)
    far = torch.full((2, 16, 6), 50.0)
    far[:, 0] = 0
    monkeypatch.setattr(rqvae, "residual_kmeans", lambda *_: far.clone())
    made = trained(some, 2, 16, steps=300)
    assert [len(level.unique()) for level in made.codes(some).T] == [16, 16]  # type: ignore[no-untyped-call]
    monkeypatch.setattr(rqvae, "_revive", lambda *_: None)
    left_alone = trained(some, 2, 16, steps=300)
    assert [len(level.unique()) for level in left_alone.codes(some).T] == [1, 1]  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("case", awkward())
def test_any_vectors_get_codes(case: str) -> None:
    some = awkward()[case]
    made = trained(some, steps=45)
    codes = made.codes(some)
    assert codes.shape == (len(some), 3)
    assert codes.min() >= 0
    assert codes.max() < 8
    assert math.isfinite(made.error(some))
    same = (some[:, None] == some[None]).all(2)
    assert ((codes[:, None] == codes[None]).all(2) | ~same).all(), "equal vectors have equal codes"


def test_the_scale_of_the_vectors_changes_nothing() -> None:
    some = points()
    assert torch.equal(trained(some).codes(some), trained(some * 1024).codes(some * 1024))


def test_it_is_a_function_of_the_vectors_and_the_generator_alone() -> None:
    some, before = points(), torch.get_rng_state()
    first, again, other = trained(some), trained(some), trained(some, seed=1)
    assert torch.equal(first.codes(some), again.codes(some))
    assert torch.equal(first.codebooks, again.codebooks)
    assert not torch.equal(first.codebooks, other.codebooks)
    assert torch.equal(torch.get_rng_state(), before), "the global generator was used"


def test_new_vectors_get_the_codes_of_their_kind() -> None:
    centres = 5 * torch.randn(6, 6, generator=generator(0))
    kind = torch.arange(240) % 6
    some = centres[kind] + 0.1 * torch.randn(240, 6, generator=generator(1))
    made = trained(some, 2, 6)
    new = made.codes(centres[kind] + 0.1 * torch.randn(240, 6, generator=generator(2)))
    assert torch.equal(new[:, 0], made.codes(some)[:, 0])
