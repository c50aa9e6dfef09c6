"""`encoder=language_model`: vectors of titles as a causal model of the register reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedrec.config.describe import load_member
from fedrec.core.errors import ConfigError
from fedrec.core.registry import encoders
from fedrec.language.models import register
from fedrec.testing.language import tiny
from peft_embeddings.encoders.base import TextEncoder

TITLES = ("red lamp", "", "blue lamp", "red lamp", "  ")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("FEDREC_HOME", str(tmp_path / "home"))
    return register(tiny("llama", tmp_path / "model", head=True).folder)


def encoder(model: str, **values: Any) -> TextEncoder:
    given = {"model": model, "item_tokens": 8, "pooling": "mean", "precision": "float32", **values}
    made: TextEncoder = encoders.get("language_model")(load_member("encoder", "language_model", **given))
    return made


def test_vectors_have_length_one_and_a_title_has_the_same_wherever_it_stands(model: str) -> None:
    told: list[tuple[str, int, int]] = []
    state = torch.get_rng_state()
    vectors = encoder(model).encode(TITLES, lambda *said: told.append(said))
    assert isinstance(vectors, np.ndarray)
    assert (vectors.shape, vectors.dtype) == ((5, 16), np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 0, 1, 1, 0], atol=1e-6)
    assert np.array_equal(vectors[0], vectors[3])
    assert not np.array_equal(vectors[0], vectors[2])
    assert np.array_equal(vectors[2], encoder(model).encode(TITLES[2:3], lambda *_: None)[0])
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"
    assert (told[0][1:], told[-1][1:]) == ((0, 5), (5, 5))


def test_what_is_beyond_item_tokens_is_not_read(model: str) -> None:
    first, second = (encoder(model, item_tokens=3).encode([text], lambda *_: None) for text in ("abcd", "abce"))
    assert np.array_equal(first, second)


def test_settings_change_the_vectors_and_the_fingerprint(model: str) -> None:
    plain = encoder(model)
    assert plain.fingerprint() == encoder(model).fingerprint()
    for values in ({"pooling": "last"}, {"item_tokens": 2}, {"precision": "bfloat16"}):
        other = encoder(model, **values)
        assert other.fingerprint() != plain.fingerprint()
        assert not np.array_equal(other.encode(TITLES, lambda *_: None), plain.encode(TITLES, lambda *_: None))


def test_a_model_that_is_not_here_is_an_error_that_mends_it(model: str) -> None:
    with pytest.raises(ConfigError, match="fedrec model FOLDER"):
        encoder(64 * "0").encode(TITLES, lambda *_: None)
