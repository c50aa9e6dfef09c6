"""`deploy/local-federation.sh` works in a folder of any name: what it hands to Flower means that folder."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from fedrec.config.compose import compose
from fedrec.config.paths import paths_in

ROOT = Path(__file__).resolve().parents[2]
FLWR = """#!/bin/sh
case $1 in
run) echo '{"run-id": "7"}' ;;
ls) echo '{"runs": [{"status": "finished:completed"}]}' ;;
esac
"""


@pytest.mark.parametrize(
    "name", ["plain", "jörg (1)", "a,b", "o'neill", 'say "hi"', "a=b [c] {d}", "back\\slash", "${x}"]
)
def test_the_run_is_told_its_folder_as_it_is(tmp_path: Path, name: str) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "flwr").write_text(FLWR)
    (programs / "fedrec").write_text("#!/bin/sh\n")
    (programs / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    folder = tmp_path / name
    (folder / "superlink" / "home").mkdir(parents=True)
    done = subprocess.run(
        ["bash", str(ROOT / "deploy/local-federation.sh"), "run", str(folder), "seed=2", "run_id=q"],
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    values = tomllib.loads((folder / "superlink" / "run-config.toml").read_text())
    config = compose(shlex.split(values["overrides"]), base=None)
    found = dict(paths_in(config))
    assert found["runs_dir"] == folder / "runs"
    assert found["cache_dir"] == folder / "cache"
    assert found["dataset.item_table"] == folder / "items.csv"
