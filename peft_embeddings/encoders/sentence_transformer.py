"""Sentence embeddings by any model of the Sentence Transformers library, from a local folder or the Hugging Face hub.

Source: Reimers and Gurevych (EMNLP 2019). The paper's encoder is Sentence-T5-base (Ni et al., 2021), 768 numbers.
A model's own code is never run (`trust_remote_code` stays off).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from annotated_types import Ge, Le, MinLen
from typing_extensions import override

from fedrec.config.paths import expanded
from fedrec.core.errors import ConfigError, DataError
from fedrec.core.registry import MemberConfig, encoders
from peft_embeddings.encoders.base import Progress, TextEncoder, TextVectors

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_BATCHES = 16  # batches between two reports of progress


@dataclass(frozen=True)
class SentenceTransformerConfig(MemberConfig):
    """Configuration of `sentence_transformer`.

    Attributes:
        model: The absolute path of a local folder, or a name on the hub.
        revision: Branch, tag or commit of a hub model (null: its main branch). Stored vectors are named by it, so a
            commit is the only one that always means the same numbers.
        device: `cpu`, `cuda`, or `auto`: CUDA where there is any.
        batch_size: Sentences that are encoded together.
        max_tokens: Longer sentences are cut there (null: the model's own limit).
        prompt: Put before every sentence, for models that were trained with one (E5: "query: ").
    """

    name: Literal["sentence_transformer"]
    model: Annotated[str, MinLen(1)]
    revision: str | None
    device: Literal["auto", "cpu", "cuda"]
    batch_size: Annotated[int, Ge(1), Le(1_000_000)]
    max_tokens: Annotated[int, Ge(1), Le(1_000_000)] | None
    prompt: str


@encoders.register("sentence_transformer")
class SentenceTransformerEncoder(TextEncoder):
    """Dense vectors [items, width of the model], as the model gives them."""

    config_class = SentenceTransformerConfig
    config: SentenceTransformerConfig

    @override
    def fingerprint(self) -> str:
        config = self.config
        folder = self._folder()
        model = _content(folder) if folder else f"{config.model}@{config.revision or 'main'}"
        try:
            library = version("sentence-transformers")
        except PackageNotFoundError as error:
            raise _not_installed() from error
        return json.dumps([config.name, model, config.max_tokens, config.prompt, library])

    @override
    def encode(self, sentences: Sequence[str], progress: Progress) -> TextVectors:
        described = [row for row, sentence in enumerate(sentences) if sentence.strip()]
        # Sentences of like length go together, so that little is computed on padding.
        described.sort(key=lambda row: len(sentences[row]), reverse=True)
        model = self._load()
        if self.config.max_tokens is not None:
            model.max_seq_length = self.config.max_tokens
        width = model.encode([""], prompt="", show_progress_bar=False).shape[1]
        vectors = np.zeros((len(sentences), width), dtype=np.float32)
        what = f"encoding item text on {model.device}"
        step = self.config.batch_size * _BATCHES
        for first in range(0, len(described), step):
            progress(what, first, len(described))
            rows = described[first : first + step]
            vectors[rows] = model.encode(
                [self.config.prompt + sentences[row] for row in rows],
                prompt="",
                batch_size=self.config.batch_size,
                show_progress_bar=False,
                convert_to_numpy=True,
            )
        progress(what, len(described), len(described))
        return vectors

    def _folder(self) -> Path | None:
        """The local folder of the model; None for a name on the hub."""
        path = expanded(Path(self.config.model))
        if path.is_absolute():
            if not path.is_dir():
                raise DataError(
                    f"encoder.model={self.config.model}: there is no such folder; expected one written by "
                    "SentenceTransformer.save, or the name of a model on the Hugging Face hub"
                )
            return path
        if self.config.model.startswith(".") or path.is_dir():
            raise ConfigError(
                [f"encoder.model={self.config.model}: a local model is named by its absolute path: {path.resolve()}"]
            )
        return None

    def _device(self) -> str:
        """`cpu` or `cuda`."""
        import torch

        available = torch.cuda.is_available()
        if self.config.device == "cuda" and not available:
            raise ConfigError(["encoder.device=cuda: PyTorch sees no CUDA device here; set encoder.device=auto or cpu"])
        return "cuda" if available and self.config.device != "cpu" else "cpu"

    def _load(self) -> SentenceTransformer:
        """The model: from its folder, else from the hub's local cache, else from the hub."""
        folder = self._folder()
        device = self._device()
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise _not_installed() from error
        failure: Exception | None = None
        # The cache is asked first: it answers at once, while a hub that cannot be reached is retried for a minute.
        for local in (True,) if folder else (True, False):
            try:
                return SentenceTransformer(
                    str(folder or self.config.model),
                    revision=self.config.revision,
                    device=device,
                    local_files_only=local,
                    trust_remote_code=False,
                )
            except Exception as error:  # the library raises whatever its many backends raise
                failure = error
        if folder:
            mend = "expected a folder written by SentenceTransformer.save that needs no code of its own"
        else:
            mend = (
                "check the name and the network; without a network, download the model elsewhere (`hf download "
                f"{self.config.model} --local-dir FOLDER`), copy the folder here and set encoder.model to its absolute "
                "path, or set encoder=tfidf, which needs no model"
            )
        reason = str(failure).strip().split("\n")[0]
        message = f"encoder.model={self.config.model}: the model cannot be loaded ({reason}); {mend}"
        raise DataError(message) from failure


def _content(folder: Path) -> str:
    """The digest of all files of a folder: their names and what is in them."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")):
        digest.update(json.dumps([path.relative_to(folder).as_posix(), path.stat().st_size]).encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _not_installed() -> ConfigError:
    return ConfigError(
        [
            "encoder=sentence_transformer: needs the package sentence-transformers, which is not installed here; "
            "`pip install sentence-transformers`, or set encoder=tfidf"
        ]
    )
