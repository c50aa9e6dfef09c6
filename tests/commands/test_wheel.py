"""The wheel works from an empty directory: it holds all that a Flower app is made of, the same as the checkout."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

from commands.flower_app import PACKAGES

CHECKOUT = Path(__file__).resolve().parents[2]
_ASSEMBLE = """
import hashlib, pathlib
from flwr.cli.build import build_fab_from_disk
from commands.flower_app import assemble
print(hashlib.sha256(build_fab_from_disk(assemble(pathlib.Path("app")))).hexdigest())
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # Not through pip: it would look for hatchling in the network.
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)], cwd=CHECKOUT, check=True
    )
    (wheel,) = folder.glob("fedrec-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_makes_the_same_bundle_as_the_checkout(site: Path, tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-c", _ASSEMBLE],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert made.stdout.strip() == hashlib.sha256(build_fab_from_disk(CHECKOUT)).hexdigest()


def test_the_wheel_holds_no_tests_and_no_stray_files(site: Path) -> None:
    names = {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")}
    assert names == {*PACKAGES, "commands"}
    kinds = {
        path.suffix
        for path in site.rglob("*")
        if path.is_file() and ".dist-info" not in str(path) and path.suffix != ".pyc"
    }
    assert kinds <= {".py", ".yaml", ".toml", ".j2", ""}
