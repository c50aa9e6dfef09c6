"""What a client imports is paid for at every message of a deployment: the process is new each time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import client_app

ROOT = str(Path(client_app.__file__).resolve().parent.parent)
HEAVY = ["pandas", "pyarrow", "sklearn", "scipy", "sentence_transformers", "transformers", "hydra", "omegaconf"]


# What a setup names and a client then loads: the members of these families, whatever they need on the server.
MEMBERS = "[family.get(name) for family in families for name in family.names()]"


def test_the_client_app_and_its_members_load_no_tables_no_encoders_and_no_composer() -> None:
    script = f"""
import client_app.app, sys
from fedrec.registry import backbones, codecs, embeddings, optims, privacies
families = embeddings, backbones, optims, codecs, privacies
assert {MEMBERS}
print(*[name for name in {HEAVY} if name in sys.modules])
"""
    loaded = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
        check=True,
    )
    assert loaded.stdout.split() == []
