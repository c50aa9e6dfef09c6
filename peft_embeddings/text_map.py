"""Item text to base vectors, for items that come later: the encoder and the reduction as they were fitted once.

Nothing is fitted anew: a new item's vector depends on its own text alone, and no other item's vector moves. Kept as two
files, `text_map.json` (which members, with which settings) and `text_map.safetensors` (what they learned).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedrec.config.validate import member_config, plain
from fedrec.core import registry
from fedrec.core.disk import reading
from fedrec.core.errors import ConfigError
from fedrec.core.strict_json import json_page, number, parsed_object
from fedrec.core.whole_files import replaced, write_text
from peft_embeddings.encoders.base import Arrays, Progress, TextEncoder, TextVectors
from peft_embeddings.reductions.base import Reduction

_FILES = ("text_map.json", "text_map.safetensors")
_ENCODER, _REDUCTION = "encoder.", "reduction."


def described_rows(vectors: TextVectors) -> NDArray[np.int64]:
    """Rows that are not the zero vector: the items that the encoder can say something about."""
    known = vectors.any(axis=1) if isinstance(vectors, np.ndarray) else np.asarray(abs(vectors).sum(axis=1)) > 0
    return np.flatnonzero(known)


def joined(encoder: Arrays, reduction: Arrays) -> dict[str, NDArray[Any]]:
    """What both have learned, in one set of arrays."""
    named = {_ENCODER + name: array for name, array in encoder.items()}
    return named | {_REDUCTION + name: array for name, array in reduction.items()}


@dataclass(frozen=True)
class TextMap:
    """The map from a sentence to a row of the base table.

    Attributes:
        encoder: Sentences to text vectors.
        reduction: Text vectors to vectors of `dim` numbers.
        learned: What the two learned from the catalogue, as `joined` names it.
        dim: Numbers in a row.
        factor: All rows are multiplied by it (it gave those of the catalogue their length).
    """

    encoder: TextEncoder
    reduction: Reduction
    learned: Arrays
    dim: int
    factor: float

    def vectors(self, sentences: Sequence[str], progress: Progress = lambda *_: None) -> Tensor:
        """float32 [sentences, dim]; zero, as in the table, for a sentence of which the encoder knows no word."""
        table = torch.zeros(len(sentences), self.dim)
        if sentences:
            encoded = self.encoder.encode_new(sentences, self._of(_ENCODER), progress)
            rows = described_rows(encoded)
            if len(rows):
                reduced = self.reduction.reduce_new(encoded[rows], self._of(_REDUCTION))
                table[torch.from_numpy(rows)] = torch.from_numpy((reduced * self.factor).astype(np.float32))
        return table

    def _of(self, prefix: str) -> Arrays:
        return {name.removeprefix(prefix): array for name, array in self.learned.items() if name.startswith(prefix)}

    def save(self, folder: Path) -> None:
        """Write the two files into a folder that exists. Raises OSError or SafetensorError."""
        from safetensors.numpy import save_file

        members = {"encoder": plain(self.encoder.config), "reduction": plain(self.reduction.config)}
        described = {**members, "dim": self.dim, "factor": self.factor}
        with replaced(folder / _FILES[1]) as started:
            save_file({name: np.ascontiguousarray(array) for name, array in self.learned.items()}, started)
        write_text(folder / _FILES[0], json_page(described))

    @staticmethod
    def load(folder: Path) -> TextMap:
        """What `save` wrote. Raises StoreError if the files are missing or not what `save` writes."""
        from safetensors.numpy import load_file

        expected = f"expected {' and '.join(_FILES)}, as a run with base_table.start=text leaves them in its folder"
        with reading(f"the text map in {folder}", expected):
            described = parsed_object((folder / _FILES[0]).read_text(encoding="utf-8"))
            learned = load_file(folder / _FILES[1])
            try:
                encoder, reduction = (member_config(family, described[family]) for family in ("encoder", "reduction"))
            except ConfigError as error:
                raise ValueError("; ".join(error.problems)) from error
            dim, factor = int(described["dim"]), number(described["factor"])
        return TextMap(
            registry.encoders.get(encoder.name)(encoder),
            registry.reductions.get(reduction.name)(reduction),
            learned,
            dim,
            factor,
        )
