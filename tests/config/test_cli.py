from __future__ import annotations

import json
import subprocess
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from commands import cli, report
from commands.cli import app
from fedrec import __version__
from fedrec.config.describe import from_dict
from fedrec.config.schema import RunConfig
from fedrec.core.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
run = CliRunner().invoke


@pytest.fixture
def body(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[..., Any]], None]:
    """Puts a function in the place of what a command runs."""

    def put(command: str, function: Callable[..., Any]) -> None:
        module = types.ModuleType(f"commands.{command}")
        setattr(module, command, function)
        monkeypatch.setattr(report, "show_summary", lambda *_: None)
        # What `train` does where nothing of the recipe is typed is in tests/commands/test_open_recipe.py.
        monkeypatch.setattr(cli, "leaves_recipe_open", lambda *_: False)
        monkeypatch.setitem(sys.modules, module.__name__, module)

    return put


@pytest.mark.usefixtures("tree")
class TestConfig:
    def test_prints_yaml_and_the_changes_as_remarks(self) -> None:
        result = run(app, ["config", "embedding.rank=8"])
        assert result.exit_code == 0
        assert from_dict(yaml.safe_load(result.stdout)).embedding.rank == 8  # type: ignore[attr-defined]
        assert "# embedding.rank: 4 -> 8\n" in result.stdout

    def test_json_is_one_line(self) -> None:
        result = run(app, ["config", "--json", "strategy=whole"])
        line = json.loads(result.stdout)
        assert result.stdout.count("\n") == 1
        assert line["config"]["embedding"] == {"name": "table"}
        assert {"key": "strategy", "default": "two_phase", "value": "whole"} in line["changes"]
        assert {"key": "embedding.rank", "default": 4} in line["changes"]

    def test_relative_paths_are_taken_against_the_working_directory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        config = json.loads(run(app, ["config", "--json", "dataset.root=data"]).stdout)["config"]
        assert config["dataset"]["root"] == str(tmp_path / "data")
        assert config["runs_dir"] == str(tmp_path / "runs")

    def test_problems_are_printed_plainly_and_the_status_is_2(self) -> None:
        result = run(app, ["config", "embedding.rnk=8", "seed=x"])
        assert result.exit_code == 2
        assert result.stdout == ""
        assert "error: the configuration has 2 problems:" in result.stderr
        assert "did you mean embedding.rank?" in result.stderr
        assert "Traceback" not in result.stderr

    def test_problems_as_json(self) -> None:
        result = run(app, ["config", "--json", "embedding.rnk=8", "seed=x"])
        assert result.exit_code == 2
        assert len(json.loads(result.stdout)["problems"]) == 2


@pytest.mark.usefixtures("tree")
@pytest.mark.parametrize("command", ["train", "simulate"])
class TestRun:
    def test_gets_the_configuration_and_overrides_that_mean_it_anywhere(
        self, command: str, body: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def check(config: RunConfig, overrides: Sequence[str], **_: object) -> dict[str, Any]:
            print("noise")
            return {"seed": config.seed, "overrides": list(overrides)}

        body(command, check)
        monkeypatch.chdir(tmp_path)
        result = run(app, [command, "--json", "seed=4", "dataset.root=data"])
        assert result.exit_code == 0
        line = json.loads(result.stdout)
        assert line["seed"] == 4
        assert f"dataset.root={tmp_path}/data" in line["overrides"]
        assert f"runs_dir={tmp_path}/runs" in line["overrides"]
        assert "noise" in result.stderr

    def test_nothing_starts_with_a_wrong_configuration(self, command: str, body: Any) -> None:
        body(command, lambda *_, **__: pytest.fail("started"))
        assert run(app, [command, "seed=x"]).exit_code == 2

    def test_an_error_to_mend_has_no_traceback(self, command: str, body: Any) -> None:
        def fail(*_: object, **__: object) -> None:
            raise DataError("u.data is missing")

        body(command, fail)
        result = run(app, [command])
        assert result.exit_code == 1
        assert result.stderr == "error: u.data is missing\n"

    def test_an_interrupt_is_130(self, command: str, body: Any) -> None:
        def interrupt(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        body(command, interrupt)
        result = run(app, [command])
        assert result.exit_code == 130
        assert result.stderr == "interrupted\n"

    def test_an_unexpected_error_is_a_bug_that_is_named_as_one(self, command: str, body: Any) -> None:
        def fail(*_: object, **__: object) -> None:
            raise RuntimeError("what nobody expected")

        body(command, fail)
        result = run(app, [command, "--json"])
        assert result.exit_code == 70
        line = json.loads(result.stdout)
        assert "bug in fedrec" in line["error"]
        assert "RuntimeError: what nobody expected" in line["error"]
        assert line["bug"] is True
        assert "Traceback (most recent call last)" in result.stderr

    @pytest.mark.parametrize(
        ("error", "said"),
        [
            (
                OSError(28, "No space left on device", "/f"),
                "/f cannot be read or written (No space left on device): make",
            ),
            (PermissionError(13, "Permission denied", "/f"), "/f cannot be read or written (Permission denied): "),
            (MemoryError("Unable to allocate 9 GiB"), "there is not enough memory (Unable to allocate 9 GiB)"),
            (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9"), "there is not enough memory"),
        ],
    )
    def test_what_the_machine_refuses_is_no_bug(self, command: str, body: Any, error: Exception, said: str) -> None:
        def fail(*_: object, **__: object) -> None:
            raise error

        body(command, fail)
        result = run(app, [command, "--json"])
        assert result.exit_code == 1
        assert said in json.loads(result.stdout)["error"]
        assert "Traceback" not in result.stderr

    def test_a_signal_leaves_its_status_and_a_line(self, command: str, body: Any) -> None:
        def ended(*_: object, **__: object) -> None:
            raise SystemExit(143)

        body(command, ended)
        result = run(app, [command, "--json"])
        assert result.exit_code == 143
        assert json.loads(result.stdout) == {"error": "ended by SIGTERM"}

    def test_what_is_not_finite_is_null_in_the_line(self, command: str, body: Any) -> None:
        body(command, lambda *_, **__: {"test": {"ndcg@10": float("nan"), "all": [float("inf"), 1.0]}})
        line = run(app, [command, "--json"]).stdout
        assert json.loads(line) == {"test": {"ndcg@10": None, "all": [None, 1.0]}}

    def test_help_explains_overrides(self, command: str) -> None:
        result = run(app, [command, "--help"])
        assert result.exit_code == 0
        assert "  embedding=  low, table\n" in result.stdout
        assert "  strategy=   two_phase, whole\n" in result.stdout
        assert "embedding.rank=8" in result.stdout
        assert f"{command} dataset=ml_1m strategy.rounds=50" in result.stdout


@pytest.mark.parametrize(
    "command",
    [*(f"{command.name}" for command in app.registered_commands), "audit promotion"],
)
def test_the_help_of_every_command_is_plain(command: str) -> None:
    result = run(app, [*command.split(), "--help"])
    assert result.exit_code == 0
    assert "[" in result.stdout
    assert "\\" not in result.stdout


@pytest.mark.parametrize(
    "typed",
    [["trian"], ["train", "--nosuch"], ["compare"], ["recommend", "--top", "0", "r"], ["split", "some", "d"]],
    ids=lambda typed: " ".join(typed),
)
def test_a_mistyped_command_line_ends_with_a_line_of_json_too(typed: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "commands.cli", *typed, "--json"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert list(json.loads(done.stdout)) == ["error"]
    assert "Traceback" not in done.stderr


def test_version() -> None:
    output = subprocess.run(
        [sys.executable, "-m", "commands.cli", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert output == f"fedrec {__version__}\n"
