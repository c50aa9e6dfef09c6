"""A language model in a GGUF file, rewritten once as the folder that everything else reads.

The file's quantised weights become float32, tensor by tensor, by transformers' own reading of GGUF (the package
`gguf`). That takes a minute, and so it is done when a model is registered and never while one is used. The folder has
safetensors, `config.json` and a tokenizer; its digest is that of what is run, wherever the same version of transformers
has rewritten the file.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from torch import Tensor, nn

from fedrec.core.disk import reading, writing
from fedrec.core.errors import ConfigError, DataError
from fedrec.core.whole_files import replaced, write_text
from fedrec.language.models import register_folder

GGUF = ".gguf"
"""How the name of such a file ends."""

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MOST_TENSORS, _MOST_VALUES = 100_000, 10_000
"""Of a file: far above what any model has, and little enough to be gone through."""

_SPARE = 2
"""Times as many numbers as a file has may be a model's, whose embeddings may serve twice."""


def rewritten(file: Path) -> Path:
    """The folder of the model in a GGUF file: beside the register, where it is written unless it is there.

    Raises as `rewrite`, and StoreError if it cannot be written.
    """
    with reading(str(file), "give a file of this account's"), file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    folder = register_folder() / f"{file.stem}-{digest[:16]}"
    if not folder.is_dir():
        with writing(str(folder), "give another FEDREC_HOME"):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(prefix=file.stem, dir=folder.parent) as started:
                made = Path(started) / folder.name
                made.mkdir()
                rewrite(file, made)
                made.rename(folder)
    return folder


def rewrite(file: Path, folder: Path) -> None:
    """Write the model in a GGUF file into an empty folder.

    Raises ConfigError if the package `gguf` is not installed, DataError if the file is no such model.
    """
    _require(file)
    try:
        import gguf  # transformers looks for it by itself, but says less of how to mend it
    except ImportError as error:
        needed = f"{file}: reading it needs the package gguf; `pip install -c constraints.txt '.[gguf]'`"
        raise ConfigError([needed]) from error
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    named = {"gguf_file": file.name, "local_files_only": True, "trust_remote_code": False}
    try:
        _require_whole(file, gguf.GGUFReader(file), AutoConfig.from_pretrained(file.parent, **named))
        read: Any = AutoModelForCausalLM.from_pretrained(
            file.parent, dtype=torch.float32, output_loading_info=True, **named
        )
        model, found = read
        AutoTokenizer.from_pretrained(file.parent, **named).save_pretrained(folder)
    except DataError:
        raise
    except Exception as error:  # the library raises whatever its reader of each architecture raises
        reason = str(error).strip().split("\n")[0]
        raise DataError(
            f"{file}: transformers can read no causal language model and tokenizer from it ({reason}); expected a GGUF "
            "file of an architecture that it knows"
        ) from error
    if lacking := sorted({*found["missing_keys"], *(str(key) for key in found["mismatched_keys"])}):
        raise DataError(f"{file}: it lacks {len(lacking)} tensors of {type(model).__name__}: {lacking[:3]}")
    untold = {"quantization_config", "transformers_version", "_name_or_path", "_model_name_or_path"}
    described = {name: value for name, value in model.config.to_dict().items() if name not in untold}
    described["architectures"] = [type(model).__name__]
    write_text(folder / "config.json", json.dumps(described, indent=2, sort_keys=True) + "\n")
    with replaced(folder / "model.safetensors") as started:
        save_file(_tensors(model), started, metadata={"format": "pt"})


def _require(file: Path) -> None:
    """Raise DataError if what a file begins with is not what a GGUF file begins with."""
    with file.open("rb") as opened:
        head = opened.read(24)
    if len(head) < 24 or not head.startswith(_MAGIC):
        raise DataError(f"{file}: it is no GGUF file: it does not begin with the four letters GGUF and its counts")
    version, tensors, values = struct.unpack("<IQQ", head[4:])
    if version not in _VERSIONS or tensors > _MOST_TENSORS or values > _MOST_VALUES:
        raise DataError(
            f"{file}: version {version} with {tensors} tensors and {values} values; expected version "
            f"{' or '.join(map(str, _VERSIONS))}, at most {_MOST_TENSORS} and {_MOST_VALUES} of them"
        )


def _require_whole(file: Path, read: Any, config: Any) -> None:
    """Raise DataError if the model that a file describes has more layers or numbers than the file has tensors for."""
    import torch
    from transformers import AutoModelForCausalLM

    layers, tensors = int(config.num_hidden_layers), len(read.tensors)
    if layers > tensors:
        raise DataError(f"{file}: it describes {layers} layers and has {tensors} tensors")
    with torch.device("meta"):  # no memory is taken for what may not be there
        model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
        described = sum(parameter.numel() for parameter in model.parameters())
    if described > _SPARE * (held := sum(int(tensor.n_elements) for tensor in read.tensors)):
        raise DataError(f"{file}: it describes a model of {described:,} numbers and has {held:,}")


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """A model's tensors by name; what has several names, such as tied embeddings, once, under the first."""
    found, seen = dict[str, Tensor](), set[int]()
    for name, tensor in cast("dict[str, Tensor]", model.state_dict()).items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            found[name] = tensor.contiguous()
    return found
