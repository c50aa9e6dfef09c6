"""The Flower app directory, and how overrides get into a run unharmed."""

from __future__ import annotations

import io
import os
import shlex
import tomllib
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.common.config import parse_config_args
from hypothesis import given
from hypothesis import strategies as st

from commands import flower_app
from commands.flower_app import PACKAGES, assemble, bundle_digest, run_config
from fedrec.core.errors import FederationError

ROOT = Path(__file__).resolve().parents[2]

AWKWARD = [
    "embedding=lora",
    "evaluation.ks=[5,10,20]",
    "dataset.root='/data/my ratings (new)/it\\'s'",
    'note="a = b, # c"',
    "name=Zoë_日本",
    "x=a\\b\t\x7f",
    "",
]


@pytest.mark.parametrize("overrides", [[], ["embedding.rank=8"], AWKWARD])
def test_overrides_reach_the_server_app_as_they_were(overrides: list[str], tmp_path: Path) -> None:
    file = tmp_path / "run config.toml"
    file.write_text(run_config(overrides), encoding="utf-8")
    arrived = parse_config_args([str(file)])  # what `flwr run --run-config <file>` does with it
    assert set(arrived) == {"overrides"}
    assert shlex.split(arrived["overrides"]) == overrides


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_any_text_survives_toml_and_shell_words(overrides: list[str]) -> None:
    assert shlex.split(tomllib.loads(run_config(overrides))["overrides"]) == overrides


def test_the_app_directory_holds_sources_configuration_and_nothing_else(tmp_path: Path) -> None:
    app = assemble(tmp_path / "fedrec")
    assert {path.name for path in app.iterdir()} == {*PACKAGES, "pyproject.toml", "LICENSE"}
    kinds = {path.suffix for package in PACKAGES for path in (app / package).rglob("*") if path.is_file()}
    assert kinds == {".py", ".yaml"}
    assert (app / "conf" / "config.yaml").is_file()
    assert not list(app.rglob("__pycache__"))


def test_the_bundle_is_small_and_has_no_tests_and_no_commands(tmp_path: Path) -> None:
    fab = build_fab_from_disk(assemble(tmp_path / "fedrec"))
    names = zipfile.ZipFile(io.BytesIO(fab)).namelist()
    assert {name.partition("/")[0] for name in names} == {*PACKAGES, "pyproject.toml", "LICENSE", ".info"}
    assert len(fab) < 1_900_000


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flower_app, "_ROOT", tmp_path / "empty")
    with pytest.raises(FederationError, match=r"'fedrec' is not at .*empty.*install fedrec anew"):
        assemble(tmp_path / "app")


def test_the_digest_is_that_of_the_bundle_wherever_and_whenever_it_is_made(tmp_path: Path) -> None:
    apps = [assemble(tmp_path / place / "fedrec") for place in ("one", "two")]
    for path in sorted(apps[1].rglob("*"), reverse=True):  # another clone: other times and modes, bytecode and leavings
        os.utime(path, (1e9, 1e9))
        path.chmod(0o700)
    (apps[1] / "fedrec/__pycache__").mkdir()
    (apps[1] / "fedrec/__pycache__/errors.cpython-311.pyc").write_bytes(b"\0")
    (apps[1] / "notes.txt").write_text("mine")
    made = [build_fab_from_disk(app) for app in (*apps, ROOT)]
    assert {sha256(content).hexdigest() for content in made} == {bundle_digest()}
    with zipfile.ZipFile(io.BytesIO(made[0])) as archive:
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}, "no library's own way"
    (apps[0] / "LICENSE").write_text("another")
    assert sha256(build_fab_from_disk(apps[0])).hexdigest() != bundle_digest()
