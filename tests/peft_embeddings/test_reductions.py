"""Reductions: PCA is exact, the autoencoder starts as PCA and only gets better, and neither is moved by chance."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.sparse import csr_array
from sklearn.decomposition import PCA

from fedrec.config.describe import load_member
from fedrec.core.errors import ConfigError, DataError
from fedrec.core.registry import reductions
from fedrec.core.rng import generator
from peft_embeddings.reductions import pca as pca_module
from peft_embeddings.reductions.autoencoder import linear_start, run
from peft_embeddings.reductions.base import Reduced, Reduction
from peft_embeddings.reductions.pca import principal_components

SMALL = {"hidden": [64, 48, 32], "epochs": 12, "batch_size": 64}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small lose time with more, and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def silent(what: str, done: int, total: int) -> None:
    """No progress."""


def curved(items: int = 400, width: int = 60, seed: int = 0) -> NDArray[np.float32]:
    """Vectors on a curved surface of few dimensions, which PCA cannot follow and an autoencoder can."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(items, 5))
    bent = np.tanh(hidden @ rng.normal(size=(5, 40))) @ rng.normal(size=(40, width))
    return (0.1 * bent + 0.3).astype(np.float32)


def words(items: int, width: int, seed: int = 0) -> csr_array:
    """Sparse vectors with a few frequent and many rare columns."""
    rng = np.random.default_rng(seed)
    dense = (rng.random((items, width)) < 0.5 / np.arange(1, width + 1)) * rng.random((items, width))
    return csr_array(dense.astype(np.float32))


def reduction(name: str, **values: Any) -> Reduction:
    made: Reduction = reductions.get(name)(load_member("reduction", name, **values))
    return made


def reduce(name: str, vectors: Any, dim: int, seed: int = 0, **values: Any) -> Reduced:
    if name == "autoencoder":
        values = {**SMALL, **values}
    return reduction(name, **values).reduce(vectors, dim, seed, silent)


def oracle(vectors: NDArray[np.float32], dim: int) -> tuple[NDArray[np.float64], float]:
    """scikit-learn's scores and the error of its reconstruction."""
    double = vectors.astype(np.float64)
    fitted = PCA(dim, svd_solver="full").fit(double)
    scores = fitted.transform(double)
    return scores, float(np.square(fitted.inverse_transform(scores) - double).mean())


# ---- every reduction ------------------------------------------------------------------------------------------------


REDUCING = sorted(set(reductions.names()) - {"none"})


@pytest.mark.parametrize("name", REDUCING)
@pytest.mark.parametrize("make", [curved, lambda: words(300, 700)], ids=["dense", "sparse"])
def test_reduced_vectors_are_float32_and_a_function_of_input_and_seed(name: str, make: Any) -> None:
    vectors = make()
    before, global_numpy = torch.get_rng_state(), str(np.random.get_state())  # noqa: NPY002
    first, second = (reduce(name, vectors, 8, seed=3) for _ in range(2))
    assert first.vectors.shape == (vectors.shape[0], 8)
    assert first.vectors.dtype == np.float32
    assert np.isfinite(first.vectors).all()
    assert np.array_equal(first.vectors, second.vectors)
    assert first.reconstruction_mse == second.reconstruction_mse
    assert torch.equal(torch.get_rng_state(), before), "the global generator was used"
    assert str(np.random.get_state()) == global_numpy, "NumPy's global generator was used"  # noqa: NPY002


@pytest.mark.parametrize("name", REDUCING)
def test_more_dimensions_than_items_or_width_is_an_error_with_the_way_out(name: str) -> None:
    for vectors in (curved(items=9), curved(width=9)):
        with pytest.raises(DataError, match=r"base_table\.dim=10: .*set base_table\.dim to 9 or less"):
            reduce(name, vectors, 10)


@pytest.mark.parametrize("name", REDUCING)
def test_progress_ends_at_all(name: str) -> None:
    calls: list[tuple[str, int, int]] = []
    values = SMALL if name == "autoencoder" else {}
    reduction(name, **values).reduce(curved(), 8, 0, lambda *call: calls.append(call))
    assert calls[-1][1] == calls[-1][2]


# ---- pca ------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(items=st.integers(2, 60), width=st.integers(1, 60), data=st.data())
def test_pca_is_scikit_learns(items: int, width: int, data: st.DataObject) -> None:
    dim = data.draw(st.integers(1, min(items - 1, width)))
    vectors = np.random.default_rng(items * 64 + width).normal(size=(items, width)).astype(np.float32)
    made = principal_components(vectors, dim, silent)
    scores, mse = oracle(vectors, dim)
    np.testing.assert_allclose(made.scores * np.sign((made.scores * scores).sum(axis=0)), scores, atol=1e-8)
    assert made.mse == pytest.approx(mse, rel=1e-8, abs=1e-12)


@pytest.mark.parametrize(("items", "width"), [(600, 530), (530, 600), (600, 100), (100, 600)])
def test_sparse_pca_is_dense_pca(items: int, width: int) -> None:
    sparse = words(items, width)
    made = principal_components(sparse, 12, silent)
    dense = principal_components(sparse.toarray(), 12, silent)
    np.testing.assert_allclose(made.scores, dense.scores, atol=1e-9)
    np.testing.assert_allclose(made.components, dense.components, atol=1e-9)
    assert made.mse == pytest.approx(dense.mse, rel=1e-9)
    assert made.mse == pytest.approx(oracle(sparse.toarray(), 12)[1], rel=1e-9)


def test_chunks_do_not_change_pca(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = principal_components(curved(), 8, silent)
    monkeypatch.setattr(pca_module, "_CHUNK_NUMBERS", 1000)
    np.testing.assert_allclose(principal_components(curved(), 8, silent).scores, whole.scores, atol=1e-10)


def test_the_sign_of_a_component_is_fixed() -> None:
    made = principal_components(curved(), 8, silent)
    assert (made.components[np.arange(8), np.abs(made.components).argmax(axis=1)] > 0).all()
    shuffled = np.random.default_rng(1).permutation(400)
    again = principal_components(curved()[shuffled], 8, silent)
    np.testing.assert_allclose(again.scores, made.scores[shuffled], atol=1e-9)


def test_vectors_of_lower_rank_than_dim_leave_empty_columns() -> None:
    vectors = np.repeat(np.random.default_rng(0).normal(size=(3, 20)), 10, axis=0).astype(np.float32)
    made = principal_components(vectors, 8, silent)
    assert np.abs(made.scores[:, 2:]).max() < 1e-6  # three distinct vectors differ in two directions
    assert made.mse < 1e-12
    np.testing.assert_allclose(made.components @ made.components.T, np.eye(8), atol=1e-9)


def test_pca_does_not_depend_on_the_seed() -> None:
    assert np.array_equal(reduce("pca", curved(), 8, seed=1).vectors, reduce("pca", curved(), 8, seed=2).vectors)


# ---- autoencoder ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [(16,), (64, 48, 16), (512, 256, 128)])
def test_the_autoencoder_starts_exactly_as_pca(hidden: Sequence[int]) -> None:
    vectors = curved()
    found = principal_components(vectors, 8, silent)
    net = linear_start(found, hidden, generator(0))
    centred = torch.from_numpy(vectors - found.mean.astype(np.float32))
    latents = run(net.encoder, centred)
    np.testing.assert_allclose(latents.numpy(), found.scores, atol=2e-6)
    np.testing.assert_allclose(run(net.decoder, latents).numpy(), found.scores @ found.components, atol=2e-6)
    error = (run(net.decoder, latents) - centred).square().mean().item()
    assert error == pytest.approx(found.mse, rel=1e-4)
    widths = [60, *hidden, 8]
    assert [tuple(weight.shape) for weight, _ in net.encoder] == list(zip(widths[1:], widths[:-1], strict=True))
    assert [tuple(weight.shape) for weight, _ in net.decoder] == list(zip(widths[-2::-1], widths[:0:-1], strict=True))


def test_the_shipped_layers_are_the_papers() -> None:
    assert tuple(reduction("autoencoder").config.hidden) == (512, 256, 128)
    assert reduction("autoencoder").config.weight_decay == 0


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_training_lowers_the_error_whatever_the_scale_of_the_vectors(scale: float) -> None:
    vectors = curved() * np.float32(scale)
    start = reduce("pca", vectors, 4).reconstruction_mse
    assert reduce("autoencoder", vectors, 4, epochs=30).reconstruction_mse < 0.8 * start


def test_the_error_told_is_that_of_the_latents_given() -> None:
    """The decoder is nonlinear, so it beats the best linear map back from the latents, which beats a constant."""
    vectors = curved()
    made = reduce("autoencoder", vectors, 4, epochs=30)
    design = np.hstack([made.vectors, np.ones((len(vectors), 1), dtype=np.float32)])
    linear = design @ np.linalg.lstsq(design, vectors, rcond=None)[0]
    assert made.reconstruction_mse < np.square(linear - vectors).mean() < 0.7 * vectors.var(axis=0).mean()


def test_without_training_the_latents_are_pcas() -> None:
    made, pca = reduce("autoencoder", curved(), 8, epochs=0), reduce("pca", curved(), 8)
    assert made.reconstruction_mse == pca.reconstruction_mse
    assert np.array_equal(made.vectors, pca.vectors)


def test_a_rate_that_breaks_training_leaves_pca_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        made = reduce("autoencoder", curved(), 8, lr=1e6)
    assert np.array_equal(made.vectors, reduce("pca", curved(), 8).vectors)
    assert made.reconstruction_mse == reduce("pca", curved(), 8).reconstruction_mse
    assert "a lower reduction.lr" in caplog.text


@pytest.mark.parametrize("weight_decay", [0.0, 1e-2])
def test_latents_do_not_collapse_to_a_constant(weight_decay: float) -> None:
    """Published code penalises weights by 1e-2, which leaves every item with the same latents."""
    vectors = curved()
    made = reduce("autoencoder", vectors, 4, epochs=40, weight_decay=weight_decay)
    start = reduce("pca", vectors, 4)
    assert (made.vectors.std(axis=0) > 0.2 * start.vectors.std(axis=0)).all()
    assert np.linalg.matrix_rank(made.vectors - made.vectors.mean(axis=0)) == 4
    assert made.reconstruction_mse <= start.reconstruction_mse


def test_the_seed_decides_the_autoencoder() -> None:
    first, second = (reduce("autoencoder", curved(), 8, seed=seed).vectors for seed in (1, 2))
    assert not np.array_equal(first, second)


def test_identical_vectors_are_reduced_to_nothing() -> None:
    for name in REDUCING:
        made = reduce(name, np.ones((50, 20), dtype=np.float32), 4)
        assert np.abs(made.vectors).max() < 1e-5
        assert made.reconstruction_mse < 1e-12


def test_layers_too_narrow_to_start_as_pca_are_an_error_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match=r"reduction\.hidden=\[64, 48, 32\]: .*34 units.*dim to 16 or less"):
        reduce("autoencoder", curved(), 17)


@pytest.mark.parametrize("make", [curved, lambda: words(300, 700)], ids=["dense", "sparse"])
def test_none_leaves_vectors_as_they_are_and_takes_no_other_dimension(make: Any) -> None:
    vectors = make()
    width = vectors.shape[1]
    dense = vectors if isinstance(vectors, np.ndarray) else vectors.toarray()
    made = reduce("none", vectors, width)
    assert made.vectors.dtype == np.float32
    assert np.array_equal(made.vectors, dense)
    assert made.reconstruction_mse == 0
    assert np.array_equal(reduction("none").reduce_new(vectors, made.learned), dense)
    with pytest.raises(DataError, match=rf"set base_table\.dim={width}, or choose another reduction"):
        reduce("none", vectors, 8)
