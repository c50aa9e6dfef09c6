"""A secret is made once, by one process, for its owner alone."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fedrec.core.errors import StoreError
from fedrec.core.keys import opaque_keys
from fedrec.core.secret import own_secret

ROOT = Path(__file__).resolve().parents[1]


def test_it_is_kept_and_readable_by_its_owner_alone(tmp_path: Path) -> None:
    secret = own_secret(tmp_path / "a")
    assert secret.bit_length() > 200
    assert own_secret(tmp_path / "a") == secret
    assert own_secret(tmp_path / "b") != secret
    path = tmp_path / "a" / "secret"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["secret"]
    assert opaque_keys(secret, ["u"]) != opaque_keys(own_secret(tmp_path / "b"), ["u"])


def test_of_many_processes_at_once_one_makes_it(tmp_path: Path) -> None:
    script = (
        f"import pathlib; from fedrec.core.secret import own_secret; print(own_secret(pathlib.Path({str(tmp_path)!r})))"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    made = [
        subprocess.Popen([sys.executable, "-c", script], env=env, stdout=subprocess.PIPE, text=True) for _ in range(6)
    ]
    assert len({process.communicate()[0] for process in made}) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


@pytest.mark.parametrize("content", ["", "abc", "z" * 64, "00" * 31, "00" * 33])
def test_a_damaged_one_is_not_made_anew_behind_its_owners_back(tmp_path: Path, content: str) -> None:
    own_secret(tmp_path)
    (tmp_path / "secret").write_text(content)
    with pytest.raises(StoreError, match="should hold 64 hexadecimal digits"):
        own_secret(tmp_path)
    assert (tmp_path / "secret").read_text() == content


def test_one_that_others_may_read_is_refused(tmp_path: Path) -> None:
    own_secret(tmp_path)
    (tmp_path / "secret").chmod(0o640)
    with pytest.raises(StoreError, match=r"may be read by others \(mode 640\): chmod 600"):
        own_secret(tmp_path)


def test_a_folder_that_cannot_be_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be read or made"):
        own_secret(tmp_path / "file" / "below")
