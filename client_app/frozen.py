"""What the server sends once: frozen tensors in files on the node's disk, each named by the digest of its content."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fedrec.errors import PacketError
from fedrec.tensors import Tensors, content_digest


class MissingFrozenError(Exception):
    """The node does not hold the frozen tensors that the message names; it asks for them instead of training."""

    def __init__(self, digest: str) -> None:
        self.digest = digest
        super().__init__(digest)


@dataclass(frozen=True)
class FrozenStore:
    """Files `<state_dir>/frozen/<digest>.safetensors`; a damaged one counts as missing, and is asked for again."""

    state_dir: Path

    def __post_init__(self) -> None:
        """Make the folder."""
        self._folder.mkdir(parents=True, exist_ok=True)

    @property
    def _folder(self) -> Path:
        return self.state_dir / "frozen"

    def _path(self, digest: str) -> Path:
        return self._folder / f"{digest}.safetensors"

    def put(self, tensors: Tensors, digest: str) -> None:
        """Keep tensors under their digest. Raises PacketError (`malformed`) if the content has another one."""
        if content_digest(tensors) != digest:
            raise PacketError("malformed", f"frozen tensors announced as {digest} have another content")
        path = self._path(digest)
        if path.exists() and _load(str(path), digest) is not None:
            return
        handle, temporary = tempfile.mkstemp(dir=self._folder, suffix=".part")
        os.close(handle)
        try:
            save_file(tensors, temporary)
            Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)
        _load.cache_clear()

    def get(self, digest: str) -> Tensors | None:
        """The tensors of that digest, or None if they are not here (or the file is damaged)."""
        path = self._path(digest)
        return _load(str(path), digest) if path.exists() else None


@lru_cache(maxsize=4)
def _load(path: str, digest: str) -> Tensors | None:
    """Read once per process: every node of a worker, and every round, shares the same tensors. Never write to them."""
    try:
        tensors: Tensors = load_file(path)
    except (SafetensorError, OSError):
        return None
    return tensors if content_digest(tensors) == digest else None
