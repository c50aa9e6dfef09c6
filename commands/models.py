"""`fedrec model`: put a language model into this machine's register, from a folder or from the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fedrec.core.errors import DataError
from fedrec.language.gguf import GGUF, rewritten
from fedrec.language.models import register, registered


def add_model(source: str, revision: str | None) -> dict[str, Any]:
    """Register the model in a folder, in a GGUF file, or of that name on the hub; its digest and folder.

    That of a GGUF file is rewritten, and that of the hub fetched first. Raises DataError if there is no such model,
    StoreError if the register cannot be written.
    """
    folder = Path(source).expanduser()
    if folder.suffix.lower() == GGUF:
        if not folder.is_file():
            raise DataError(f"{source}: there is no such file")
        folder = rewritten(folder)
    elif not folder.is_dir():
        folder = _fetched(source, revision)
    return {"digest": register(folder), "folder": str(folder.resolve())}


def show_registered(console: Console) -> dict[str, str]:
    """Print what the register has; digest and folder of each."""
    found = {digest: str(folder) for digest, folder in registered().items()}
    table = Table("digest", "folder", title="Language models of this machine", title_justify="left")
    for digest, folder in found.items():
        table.add_row(digest, folder)
    console.print(table if found else "no language model is registered here yet: fedrec model FOLDER")
    return found


def _fetched(name: str, revision: str | None) -> Path:
    """The folder of a model of the hub: from its cache, else from the hub; never its code, nor pickled weights."""
    if name.startswith((".", "/", "~")):
        raise DataError(f"{name}: there is no such folder; expected one with config.json, weights and a tokenizer")
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model"]
    failure: Exception | None = None
    for local in (True, False):  # the cache answers at once, a hub that cannot be reached is retried for a minute
        try:
            return Path(snapshot_download(name, revision=revision, local_files_only=local, allow_patterns=patterns))
        except Exception as error:  # the library raises whatever its many ways to the hub raise
            failure = error
    reason = str(failure).strip().split("\n")[0]
    raise DataError(
        f"{name}: no such folder, and the hub gives no such model ({reason}); check the name and the network, or give "
        "the folder of a model that was fetched elsewhere"
    ) from failure
