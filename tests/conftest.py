"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

# Small tensors: more threads only wait for each other, the more so beside other processes.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder with the real data; its absence is a failure, never a skip."""
    folder = Path(os.environ.get("FEDREC_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")).resolve()
    for name in ("ml-100k/u.data", "ml-1m/interactions.csv", "amazon-industrial/interactions.csv"):
        if not (folder / name).is_file():
            pytest.fail(f"{folder / name} is missing: set FEDREC_DATA to the folder with the real data")
    return folder
