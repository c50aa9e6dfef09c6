"""The base table: from item text to the frozen vectors that every embedding starts from.

Text vectors and reduced tables are stored under `cache_dir` by the hash of everything that they depend on, so that a
second run with the same catalogue starts at once; a stored file that is damaged is reported and made anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedrec.core.disk import DAMAGE, DENIED, number, reason, writing
from fedrec.core.errors import DataError, FedrecError
from fedrec.core.rng import generator
from fedrec.core.tensors import content_digest
from fedrec.core.whole_files import replaced
from fedrec.data.store import ELSEWHERE
from fedrec.data.types import Catalogue
from peft_embeddings.encoders.base import Arrays, Encoded, Progress, TextEncoder, TextVectors
from peft_embeddings.reductions.base import Reduction
from peft_embeddings.text_map import TextMap, described_rows, joined

_LOG = logging.getLogger(__name__)

_VERSION = 2
"""Raised whenever the same inputs lead to other numbers than before, so that older stored files are not used."""

_LEARNED = "learned."
"""Before the names of arrays that an encoder or a reduction has learned, where they stand among others."""


@dataclass(frozen=True)
class BaseTable:
    """The pre-trained item table.

    Attributes:
        table: float32 [items, dim]; the row of an item without text is zero, which is the mean of the others.
        digest: Names the exact content of `table`.
        key: Names everything that the reduced vectors were made from (not `norm`, which only scales them).
        reconstruction_mse: Mean squared error, per number, of the text vectors rebuilt from the reduced ones; None
            for a random table.
        items_without_text: Items whose text is empty, or has no word that the encoder knows.
        cached: Whether the reduced vectors were stored already.
        text_map: The way from text to such vectors, for items that come later; None for a random table.
    """

    table: Tensor
    digest: str
    key: str
    reconstruction_mse: float | None
    items_without_text: int
    cached: bool
    text_map: TextMap | None = field(repr=False, compare=False)


def build_base_table(
    catalogue: Catalogue,
    encoder: TextEncoder,
    reduction: Reduction,
    dim: int,
    norm: float,
    seed: int,
    cache_dir: Path | None,
    progress: Progress,
) -> BaseTable:
    """Encode the catalogue's text, reduce the vectors to `dim` numbers, and scale them.

    Args:
        catalogue: Items with their sentences.
        encoder: Sentences to vectors.
        reduction: Vectors of any width to `dim` numbers; it sees only items that have a vector.
        dim: Numbers in a row of the table.
        norm: Root mean square length of the rows of items that have text.
        seed: The reduction's seed.
        cache_dir: Folder of what can be made anew (None: nothing is stored).
        progress: Called while something long is computed.

    Raises:
        DataError: no item has text that tells it from others, or fewer items have text than `dim` needs.
        StoreError: `cache_dir` cannot be written.
    """
    if not any(sentence.strip() for sentence in catalogue.sentences):
        raise DataError(
            f"none of the catalogue's {len(catalogue)} items has any text, and the base table is made from text; bring "
            "item text with the data set (dataset=table: a dataset.item_table that has dataset.text_columns), or take "
            "base_table.start=random"
        )
    vectors_key = _vectors_key(catalogue, encoder)
    table_key = _key("table", _VERSION, vectors_key, dataclasses.asdict(reduction.config), dim, seed)
    made = _load(cache_dir, "table", table_key)
    cached = made is not None
    if made is None:
        encoded = _encoded(catalogue, encoder, cache_dir, vectors_key, progress)
        made = _reduce(encoded, encoder, reduction, dim, seed, progress)
        _save(cache_dir, "table", table_key, made)
    reduced, described = made["reduced"], made["described"]
    table = torch.zeros(len(catalogue), dim)
    factor = _factor(reduced, norm)
    table[torch.from_numpy(described)] = torch.from_numpy((reduced * factor).astype(np.float32))
    return BaseTable(
        table=table,
        digest=content_digest({"base": table}),
        key=table_key,
        reconstruction_mse=float(made["mse"][0]),
        items_without_text=len(catalogue) - len(described),
        cached=cached,
        text_map=TextMap(encoder, reduction, _learned(made), dim, factor),
    )


def random_base_table(n_items: int, dim: int, norm: float, seed: int) -> BaseTable:
    """A table of normal numbers, rows of root mean square length `norm`: where no text says anything of items."""
    table = torch.randn(n_items, dim, generator=generator(seed, "base_table")) * (norm / dim**0.5)
    return BaseTable(
        table=table,
        digest=content_digest({"base": table}),
        key=_key("random", _VERSION, n_items, dim, seed),
        reconstruction_mse=None,
        items_without_text=n_items,
        cached=False,
        text_map=None,
    )


def text_vectors(catalogue: Catalogue, encoder: TextEncoder, cache_dir: Path | None, progress: Progress) -> TextVectors:
    """The encoder's vectors [items, width] of a catalogue's sentences, from the cache if they are there.

    Raises DataError or FedrecError if the encoder cannot encode them, StoreError if `cache_dir` cannot be written.
    """
    return _encoded(catalogue, encoder, cache_dir, _vectors_key(catalogue, encoder), progress).vectors


def _vectors_key(catalogue: Catalogue, encoder: TextEncoder) -> str:
    return _key("text", _VERSION, catalogue.digest, encoder.fingerprint())


def _reduce(
    encoded: Encoded, encoder: TextEncoder, reduction: Reduction, dim: int, seed: int, progress: Progress
) -> Arrays:
    """Reduced vectors [described, dim], the rows of the items that have any, the error, and what was learned."""
    vectors = encoded.vectors
    described = described_rows(vectors)
    if not len(described):
        raise DataError(
            f"encoder={encoder.config.name}: it gives the texts of all {vectors.shape[0]} items the zero vector, so "
            "there is nothing to make a base table from; choose another encoder or other settings of it (tfidf: a "
            "lower encoder.min_df, a higher encoder.max_features)"
        )
    chosen = vectors if len(described) == vectors.shape[0] else vectors[described]
    reduced = reduction.reduce(chosen, dim, seed, progress)
    wrong = np.count_nonzero(~np.isfinite(reduced.vectors))
    if reduced.vectors.shape != (len(described), dim) or wrong:
        raise FedrecError(
            f"reduction={reduction.config.name}: expected finite vectors {(len(described), dim)}, came "
            f"{reduced.vectors.shape} with {wrong} numbers that are not finite"
        )
    return {
        "reduced": reduced.vectors,
        "described": described,
        "mse": np.array([reduced.reconstruction_mse]),
        **_named(joined(encoded.learned, reduced.learned)),
    }


def _encoded(
    catalogue: Catalogue, encoder: TextEncoder, cache_dir: Path | None, key: str, progress: Progress
) -> Encoded:
    """The encoder's vectors [items, width] and what it learned, stored or made (and then checked and stored)."""
    stored = _load(cache_dir, "text", key)
    if stored is not None:
        return Encoded(_from_arrays(stored), _learned(stored))
    encoded = encoder.fit(catalogue.sentences, progress)
    vectors = encoded.vectors
    numbers = vectors if isinstance(vectors, np.ndarray) else vectors.data
    wrong = np.count_nonzero(~np.isfinite(numbers))
    if vectors.ndim != 2 or vectors.shape[0] != len(catalogue) or numbers.dtype != np.float32 or wrong:
        raise FedrecError(
            f"encoder={encoder.config.name}: expected finite float32 vectors ({len(catalogue)}, width), came "
            f"{numbers.dtype} {vectors.shape} with {wrong} numbers that are not finite"
        )
    _save(cache_dir, "text", key, _to_arrays(vectors) | _named(encoded.learned))
    return encoded


def _named(learned: Arrays) -> dict[str, NDArray[Any]]:
    return {_LEARNED + name: array for name, array in learned.items()}


def _learned(stored: Arrays) -> Arrays:
    return {name.removeprefix(_LEARNED): array for name, array in stored.items() if name.startswith(_LEARNED)}


def _factor(reduced: NDArray[np.float32], norm: float) -> float:
    """The factor for all rows that makes the root mean square of their lengths `norm`."""
    length = float(np.sqrt(np.square(reduced, dtype=np.float64).sum(axis=1).mean()))
    if length < 1e-6:
        raise DataError(
            f"the texts of all {len(reduced)} items with text have the same vector, so a base table cannot tell items "
            "apart; name text columns that differ between items"
        )
    return norm / length


def _key(*parts: Any) -> str:
    return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


def _to_arrays(vectors: TextVectors) -> dict[str, NDArray[Any]]:
    if isinstance(vectors, np.ndarray):
        return {"dense": vectors}
    shape = np.array(vectors.shape, dtype=np.int64)
    return {"data": vectors.data, "indices": vectors.indices, "indptr": vectors.indptr, "shape": shape}


def _from_arrays(arrays: Arrays) -> TextVectors:
    if "dense" in arrays:
        return arrays["dense"]
    from scipy.sparse import csr_array

    return csr_array((arrays["data"], arrays["indices"], arrays["indptr"]), shape=tuple(arrays["shape"]))


# ---- stored files: safetensors with a checksum of their content, complete or not there at all -----------------------


def _checksum(key: str, arrays: Arrays) -> str:
    digest = hashlib.blake2b(key.encode(), digest_size=16)
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(json.dumps([name, array.shape, str(array.dtype)]).encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _path(cache_dir: Path, kind: str, key: str) -> Path:
    return cache_dir / "base_table" / f"{kind}-{key}.safetensors"


def _load(cache_dir: Path | None, kind: str, key: str) -> Arrays | None:
    """The stored arrays; None if there are none, or if they are not what was written (which is reported).

    Raises StoreError if the folder may not even be looked into.
    """
    if cache_dir is None:
        return None
    path = _path(cache_dir, kind, key)
    with writing(f"cache_dir={cache_dir}: {path.name}", ELSEWHERE):
        if not path.exists():
            return None
    from safetensors import safe_open

    try:
        with safe_open(path, framework="np") as file:
            names: list[str] = file.keys()
            arrays = {name: file.get_tensor(name) for name in names}
            written = (file.metadata() or {}).get("checksum")
        if written != _checksum(key, arrays):
            raise ValueError("its content is not what its checksum names")
    except (OSError, *DAMAGE) as error:
        state = "cannot be read" if number(error) in DENIED else "is damaged"
        _LOG.warning("the stored %s %s (%s); it is not used, but made anew", path, state, reason(error))
        return None
    return arrays


def _save(cache_dir: Path | None, kind: str, key: str, arrays: Arrays) -> None:
    """Write arrays under a name of their own first: a reader finds the whole file or none."""
    if cache_dir is None:
        return
    from safetensors.numpy import save_file

    path = _path(cache_dir, kind, key)
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with writing(f"cache_dir={cache_dir}: {path.name}", ELSEWHERE):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path, synced=True) as started:
            save_file(whole, started, metadata={"checksum": _checksum(key, whole)})
