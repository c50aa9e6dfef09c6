"""Where language models are on this machine: a register of its own, from a model's digest to a folder.

A run names a model by the SHA-256 digest of its files and by nothing else, so that no server can make a client open a
folder of its choice: what the client's own register does not have is refused. `fedrec model` puts a model into it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch

from fedrec.config.paths import home
from fedrec.core.disk import reading, writing
from fedrec.core.errors import ConfigError, DataError
from fedrec.core.strict_json import json_page, parsed_object
from fedrec.core.tensors import Spec
from fedrec.core.whole_files import write_text
from fedrec.language.layers import PARTS, Layers, Part
from fedrec.language.loading import Lora, loaded, outline, weight_files

DIGEST = "^[0-9a-f]{64}$"
"""A model's name, as a regular expression."""

_KINDS = {".json", ".safetensors", ".txt", ".model"}
"""Ends of the names of files that make a model: configuration, weights, tokenizer. Nothing else of a folder is read."""

_WEIGHTS = ".safetensors"
_BLOCK = 1 << 20

Precision = Literal["float32", "bfloat16", "float64"]
PRECISIONS: dict[Precision, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}
"""Of a model's weights."""

_NAMED: Mapping[Precision, str] = {"float32": "F32", "bfloat16": "BF16", "float64": "F64"}
"""The same in the headers of safetensors."""


def register(folder: Path) -> str:
    """Put the model in a folder into this machine's register, and return its digest.

    Raises DataError if there is no model in the folder, FedrecError if its weights are none or elsewhere, StoreError if
    the register cannot be written.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder; expected one with config.json, weights and a tokenizer")
    files = list(_files(folder))
    if not any(path.suffix == _WEIGHTS for path in files):
        raise DataError(
            f"{folder}: there are no weights in it; expected model.safetensors beside config.json and the tokenizer's "
            "files (pickled weights are never read)"
        )
    weight_files(folder)
    digest = _digest(files)
    _write(digest, folder, files)
    return digest


def folder_of(digest: str) -> Path:
    """The folder of a model.

    Its files are read anew only if one of them has another size or time than when they were read last.

    Raises ConfigError, which says how to mend it, if the register does not have the model, or its files have changed.
    """
    if not re.fullmatch(DIGEST, digest):
        expected = "expected the 64 hexadecimal digits that `fedrec model` prints"
        raise ConfigError([f"backbone.model={digest[:80]}: {expected}"])
    entry = _entry(digest)
    if entry is None:
        raise ConfigError(
            [
                f"backbone.model={digest}: this machine does not have this language model; get its files, and put them "
                "into the register here: fedrec model FOLDER (or its name on the Hugging Face hub)"
            ]
        )
    folder = Path(str(entry["folder"]))
    files = list(_files(folder)) if folder.is_dir() else []
    if entry["files"] != _stamps(files):
        if not files or _digest(files) != digest:
            raise ConfigError(
                [
                    f"backbone.model={digest}: the files in {folder} are no longer those of this model; put them back, "
                    "or register the folder where they are: fedrec model FOLDER"
                ]
            )
        _write(digest, folder, files)
    return folder


@lru_cache(maxsize=8)
def weights_bytes(digest: str, precision: Precision) -> int:
    """Bytes of a model's weights in memory, with those of their files where these have another precision.

    Such files are read beside what is made of them. Raises as `folder_of`.
    """
    from safetensors import safe_open

    files, other = weight_files(folder_of(digest)), False
    made, wide = 0, PRECISIONS[precision].itemsize
    for path in files:
        with safe_open(path, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - it is no mapping
                entry = weights.get_slice(name)
                made += wide * math.prod(entry.get_shape())
                other |= entry.get_dtype() != _NAMED[precision]
    return made + (sum(path.stat().st_size for path in files) if other else 0)


def registered() -> dict[str, Path]:
    """All models of the register: digest and folder. Raises StoreError for an entry that is damaged."""
    found = sorted(path.stem for path in register_folder().glob("*.json")) if register_folder().is_dir() else []
    return {digest: Path(str(entry["folder"])) for digest in found if (entry := _entry(digest)) is not None}


@lru_cache(maxsize=8)
def lora_spec(digest: str, lora: Lora, first: int = 0) -> Spec:
    """The trained tensors of a model with LoRA, by their short names: from its configuration, without its weights.

    Raises as `folder_of`, and FedrecError if LoRA does not fit it.
    """
    folder = folder_of(digest)
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder}: no configuration of a transformer can be read there: {error}") from error
    return outline(config, lora, first).tensors


@lru_cache(maxsize=4)
def layers_of_model(
    digest: str,
    lora: Lora,
    precision: Precision,
    device: torch.device,
    first: int = 0,
    parts: tuple[Part, ...] = PARTS,
) -> Layers:
    """The model with the weights of these parts on a device, read once per process.

    Raises as `folder_of`, and FedrecError if it is damaged.
    """
    return loaded(folder_of(digest), lora, first, parts, PRECISIONS[precision]).to(device)


def register_folder() -> Path:
    """Where this machine's register is, and models that were rewritten for it."""
    return home() / "models"


def _entry(digest: str) -> dict[str, Any] | None:
    path = register_folder() / f"{digest}.json"
    with reading(str(path), "register the model anew: fedrec model FOLDER"):
        if not path.exists():
            return None
        entry = parsed_object(path.read_text(encoding="utf-8"))
        if not isinstance(entry.get("folder"), str) or not isinstance(entry.get("files"), dict):
            raise ValueError("it names no folder and files")
        return entry


def _write(digest: str, folder: Path, files: list[Path]) -> None:
    with writing(f"the register of language models {register_folder()}", "give another FEDREC_HOME"):
        register_folder().mkdir(parents=True, exist_ok=True)
        write_text(register_folder() / f"{digest}.json", json_page({"folder": str(folder), "files": _stamps(files)}))


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.suffix in _KINDS and not path.name.startswith(".") and path.is_file():
            yield path


def _stamps(files: list[Path]) -> dict[str, list[int]]:
    return {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files}


def _digest(files: list[Path]) -> str:
    whole = hashlib.sha256()
    for path in files:
        content = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                content.update(block)
        whole.update(json.dumps([path.name, content.hexdigest()]).encode())
    return whole.hexdigest()


@dataclass(frozen=True)
class Sizes:
    """Of a transformer: numbers of a hidden state, layers, heads, the longest text in tokens, and tokens there are."""

    width: int
    layers: int
    heads: int
    positions: int
    vocabulary: int


@lru_cache(maxsize=8)
def sizes_of(digest: str) -> Sizes:
    """The sizes of a model. Raises as `folder_of`, and StoreError if its configuration is none of a transformer."""
    folder = folder_of(digest)
    with reading(str(folder / "config.json"), "expected the configuration of a transformer"):
        described = parsed_object((folder / "config.json").read_text(encoding="utf-8"))
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings", "vocab_size")
        return Sizes(*(int(described[name]) for name in names))
