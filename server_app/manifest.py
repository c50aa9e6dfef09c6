"""A run's name, and what a reader needs to compare it with another or to make it again."""

from __future__ import annotations

import platform
import secrets
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from fedrec import __version__
from fedrec.config.schema import RunConfig
from fedrec.data import report
from fedrec.data.types import Dataset
from fedrec.wire.code import code_digest
from fedrec.wire.protocol import (
    SimulatedData,
)
from peft_embeddings.base_table import BaseTable


def new_run_id(config: RunConfig) -> str:
    """A name for a run's folder: when it started, what it trains, and four letters against collisions."""
    what = f"{config.strategy.name}-{config.embedding.name}-{config.backbone.name}-{config.dataset.name}"
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{what}-{secrets.token_hex(2)}"


def manifest(
    config: RunConfig, overrides: Sequence[str], dataset: Dataset, table: BaseTable, place: SimulatedData | None
) -> dict[str, Any]:
    """What a reader needs to know whether two runs can be compared, and to make one again."""
    packages = ("flwr", "torch", "numpy", "scikit-learn")
    return {
        "fedrec": __version__,
        "code": code_digest(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "threads": torch.get_num_threads(),
        "overrides": list(overrides),
        "seed": config.seed,
        "data": {
            "name": dataset.name,
            "catalogue": dataset.catalogue.digest,
            "interactions": Path(place.interactions).name if place else None,
            "eligible": len(dataset.eligible),
            "validation": config.evaluation.validation,
            **report.as_dict(dataset.report),
        },
        "base_table": {
            "digest": table.digest,
            "reconstruction_mse": table.reconstruction_mse,
            "items_without_text": table.items_without_text,
        },
    }
