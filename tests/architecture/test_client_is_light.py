"""What a client imports is paid for at every message of a deployment: the process is new each time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import client_app

ROOT = str(Path(client_app.__file__).resolve().parent.parent)
HEAVY = ["pandas", "pyarrow", "sklearn", "scipy", "sentence_transformers", "transformers", "hydra", "omegaconf"]


def test_the_client_app_loads_no_tables_no_encoders_and_no_composer() -> None:
    script = f"import client_app.app, sys; print(*[name for name in {HEAVY} if name in sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
        check=True,
    )
    assert loaded.stdout.split() == []
