"""The folder of a run: everything that a run leaves behind, readable without fedrec, and never a pickle.

config.yaml       the resolved configuration
manifest.json     versions, seed, digests of data, code and specification
setup.json        what every client was told
items.json        ids and titles of the items, by row of the catalogue
metrics.jsonl     one JSON object per round
summary.json      the result, once the run has ended
text_map.*        encoder and reduction as they were fitted, for items that come later
log.txt           what happened, as plain lines
checkpoints/      round-000100.safetensors (global model) and .json (where it stands), the newest few
state/            simulation only: what the simulated devices keep on their own disks
secret            deployment only: the root of the server's noise
"""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from fedrec.data.types import Catalogue
from fedrec.errors import StoreError
from fedrec.protocol import Setup
from fedrec.tensors import Tensors
from strategies.base import ServerState
from strategies.meter import Meter

METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
SETUP = "setup.json"
ITEMS = "items.json"


class RunFolder:
    """Writes the files of one run; every file appears whole or not at all, but for the two that grow line by line."""

    def __init__(self, path: Path) -> None:
        """Open the folder of a new run. Raises StoreError if a run has been there, or it cannot be written."""
        try:
            if (path / METRICS).exists() or any((path / "state").glob("*")):
                raise StoreError(f"{path} already holds a run: choose another run_id, or remove the folder")
            for folder in (path, path / "checkpoints", path / "state"):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"the run folder {path} cannot be made ({error.strerror}): set runs_dir=/another/folder"
            ) from error
        self.path = path

    @property
    def state_dir(self) -> Path:
        """Where simulated devices keep their private tensors and what they were sent once."""
        return self.path / "state"

    def log_handler(self) -> logging.Handler:
        """A handler that writes `log.txt`; the caller adds and removes it."""
        handler = logging.FileHandler(self.path / "log.txt", encoding="utf-8")
        formatter = logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%SZ")
        formatter.converter = time.gmtime
        handler.setFormatter(formatter)
        return handler

    def write_text(self, name: str, text: str) -> None:
        """Write a whole file atomically."""
        temporary = self.path / f".{name}.part"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self.path / name)

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        """Write a JSON file atomically, indented for people."""
        self.write_text(name, json.dumps(values, indent=2) + "\n")

    def write_public(self, setup: Setup, catalogue: Catalogue) -> None:
        """Write what is public about model and items: with the last checkpoint, all it takes to recommend."""
        self.write_text(SETUP, setup.to_json() + "\n")
        items = {"ids": catalogue.item_ids, "titles": catalogue.titles}
        self.write_text(ITEMS, json.dumps(items, ensure_ascii=False) + "\n")

    def add_metrics(self, record: dict[str, Any]) -> None:
        """Append one round's line, at once on disk for whoever follows the file."""
        with (self.path / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def write_checkpoint(self, round: int, state: ServerState, meter: Meter) -> None:
        """Keep the global model, the server optimiser and the byte meter after a round; the JSON file comes last.

        When this returns, the checkpoint is on the disk itself, and would be there after a power failure.
        """
        tensors: Tensors = {f"trainable.{name}": tensor for name, tensor in state.trainable.items()}
        tensors |= {f"frozen.{name}": tensor for name, tensor in state.frozen.items()}
        tensors |= {f"kept.{name}": tensor for name, tensor in state.kept.items()}
        tensors |= {f"optimiser.{name}": tensor for name, tensor in state.optimiser.items()}
        plain, merged = state.merges.state()
        tensors |= {f"merged.{name}": packet for name, packet in merged.items()}
        tensors |= {f"meter.{name}": torch.from_numpy(counts) for name, counts in meter.state().items()}
        name = _name(round)
        temporary = self._checkpoints / f"{name}.part"
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, temporary)
        self._settle(temporary, f"{name}.safetensors")
        where = {"round": round, "phase": state.phase, "frozen_digest": state.frozen_digest, **plain}
        temporary.write_text(json.dumps(where) + "\n", encoding="utf-8")
        self._settle(temporary, f"{name}.json")

    def prune_checkpoints(self, round: int, kept: int) -> None:
        """Delete the checkpoints before `round`, which has been written, but for the newest `kept - 1`.

        A checkpoint that is half there, because a run was killed at that moment, is deleted too.
        """
        whole = sorted(path.stem for path in self._checkpoints.glob("round-*.json") if path.stem < _name(round))
        spared = {_name(round), *whole[max(0, len(whole) - kept + 1) :]}
        # The JSON file first: whoever finds it finds the tensors.
        for suffix in ("json", "safetensors", "part"):
            for path in sorted(self._checkpoints.glob(f"round-*.{suffix}")):
                if path.stem <= _name(round) and path.stem not in spared:
                    path.unlink()

    @property
    def _checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def _settle(self, temporary: Path, name: str) -> None:
        """Give a written file of the checkpoints its name; content and name are on the disk when this returns."""
        _sync(temporary)
        temporary.replace(self._checkpoints / name)
        _sync(self._checkpoints)


def _name(round: int) -> str:
    return f"round-{round:06d}"


def _sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, have reached the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
