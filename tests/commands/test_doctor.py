"""`fedrec doctor`: what is well is said to be, what is not is found, and each with what mends it."""

from __future__ import annotations

import subprocess
import sys
import time
import tomllib
from collections import namedtuple
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from typer.testing import CliRunner

from commands import doctor as doctor_module
from commands.cli import app
from commands.doctor import Check, doctor, require_well
from commands.processes import command_lines
from fedrec.core.errors import FedrecError
from fedrec.core.strict_json import parsed_object


def states(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.state for check in checks}


def found(name: str) -> Check:
    return next(check for check in doctor() if check.name == name)


def test_this_installation_is_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDREC_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor_module, "command_lines", dict)  # others may run Flower on this machine
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 0, result.output
    checks = parsed_object(result.output.splitlines()[-1])["checks"]
    assert {check["name"] for check in checks} >= {"python", "packages", "torch", "machine", "runs", "ports", "ray"}
    assert all(check["state"] != "failed" for check in checks)
    assert CliRunner().invoke(app, ["doctor"]).output.count("well") >= 9
    assert list(tmp_path.iterdir()) == []  # nothing is left


def test_packages_of_another_version_or_none_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor_module.version

    def version(name: str) -> str:
        if name == "scipy":
            raise PackageNotFoundError(name)
        return "1.30.0" if name == "flwr" else real(name)

    monkeypatch.setattr(doctor_module, "version", version)
    checks = {check.name: check for check in doctor_module._requirements()}
    assert states(list(checks.values())) == {"flwr": "failed", "scipy": "failed"}
    assert checks["flwr"].found == "1.30.0, wanted ==1.41.*"
    assert checks["scipy"].mend.startswith("pip install 'scipy")
    with pytest.raises(FedrecError, match="2 of 2 checks failed: flwr, scipy"):
        require_well(list(checks.values()))


def test_a_package_that_is_not_installed_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "_NAME", "no-such-package")
    (check,) = doctor_module._requirements()
    assert (check.state, "pip install" in check.mend) == ("failed", True)


def test_folders_that_cannot_be_written_or_are_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDREC_HOME", "/proc/nothing/here")
    check = found("fedrec's own folder")
    assert (check.state, check.mend) == ("failed", "set FEDREC_HOME")
    monkeypatch.setenv("FEDREC_HOME", "relative")
    assert found("folders").state == "failed"
    monkeypatch.setenv("FEDREC_HOME", str(tmp_path))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor_module.shutil, "disk_usage", lambda _: usage(1, 1, 2**20))
    assert found("runs").state == "warning"


def test_files_that_would_be_imported_in_the_place_of_fedrec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert found("names").state == "well"
    (tmp_path / "strategies.py").write_text("")
    (tmp_path / "conf").mkdir()
    check = found("names")
    assert check.state == "warning"
    assert "strategies, conf" in check.found
    monkeypatch.chdir(Path(doctor_module.__file__).parent.parent)
    assert found("names").state == "well"


def test_a_folder_that_is_gone_or_closed_is_a_check_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert {name: state for name, state in states(doctor()).items() if state == "failed"} == {
        "folders": "failed",
        "names": "failed",
    }
    monkeypatch.chdir(tmp_path)

    def closed(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", closed)
    assert doctor_module._folder("runs", tmp_path / "x", "elsewhere").state == "failed"


def test_the_packages_that_may_be_shadowed_are_those_that_are_installed() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert list(doctor_module._PACKAGES) == project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]


def test_a_python_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module.platform, "python_version", lambda: "3.9.1")
    assert found("python").found == "3.9.1, wanted >=3.11"


def test_a_process_that_runs_is_seen_with_its_words() -> None:
    words = "import time; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", words]) as process:
        try:
            deadline = time.monotonic() + 30
            while process.pid not in (seen := command_lines()) or seen[process.pid][-1] != words:
                assert time.monotonic() < deadline, seen.get(process.pid)
                time.sleep(0.05)
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("words", "leftover"),
    [
        (["/venv/bin/python", "/venv/bin/flower-superlink", "--insecure"], True),
        (["/usr/lib/ray/raylet"], True),
        (["vim", "/home/me/flower-superlink.md"], True),  # a warning that names it; nothing is done to it
        (["python", "train.py", "flower-superlink"], False),
    ],
)
def test_programs_of_flower_and_ray_are_told_from_others(
    words: list[str], leftover: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_module, "command_lines", lambda: {123: words})
    check = found("leftovers")
    assert check.state == ("warning" if leftover else "well")
    assert ("123" in check.found) is leftover
