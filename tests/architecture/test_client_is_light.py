"""What a client imports is paid for at every message of a deployment: the process is new each time."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import client_app

ROOT = str(Path(client_app.__file__).resolve().parent.parent)
HEAVY = ["pandas", "pyarrow", "sklearn", "scipy", "sentence_transformers", "transformers", "hydra", "omegaconf"]


# What a setup names and a client then loads: the members of these families, whatever they need on the server.
MEMBERS = "[family.get(name) for family in families for name in family.names()]"


def test_the_client_app_and_its_members_load_no_tables_no_encoders_and_no_composer() -> None:
    script = f"""
import client_app.answers.app, sys
from fedrec.core.registry import (
    aggregations,
    backbones,
    codecs,
    downlinks,
    embeddings,
    groupings,
    networks,
    optims,
    privacies,
)
from fedrec.core.registry import uplinks
families = embeddings, backbones, optims, codecs, privacies, groupings, networks, uplinks, downlinks, aggregations
assert {MEMBERS}
print(*[name for name in {HEAVY} if name in sys.modules])
"""
    assert printed(script) == []


def test_flower_loads_both_apps_without_torch() -> None:
    """It starts Ray after it has loaded them, and torch takes seconds."""
    components = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["tool"]["flwr"]["app"][
        "components"
    ]
    modules = [reference.partition(":")[0] for reference in components.values()]
    assert len(modules) == 2
    script = f"import {', '.join(modules)}, sys; print(*[name for name in {[*HEAVY, 'torch']} if name in sys.modules])"
    assert printed(script) == []


@pytest.mark.parametrize(
    "typed",
    [
        ["train", "optim=nothing", "seed=x", "dataset.k_core=-1"],
        ["recommend", "nowhere", "--user", "1"],
        ["similar", "--item", "1"],
        ["compare", "nowhere"],
    ],
)
def test_a_mistyped_command_is_told_so_without_torch(typed: list[str]) -> None:
    script = f"""
import sys
from typer.testing import CliRunner
from commands.cli import app
done = CliRunner().invoke(app, {typed})
assert done.exit_code in (1, 2) and "error: " in done.output, done.output
print(*[name for name in {[*HEAVY[:1], "torch", "flwr"]} if name in sys.modules])
"""
    assert printed(script) == []


def test_what_posix_alone_has_is_imported_where_it_is_used() -> None:
    """So that the packages can be imported on any system."""
    found = []
    for package in ("fedrec", "peft_embeddings", "exchanges", "federation", "strategies", "client_app", "server_app"):
        for path in (Path(ROOT) / package).rglob("*.py"):
            imports = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import)]
            names = {alias.name for node in imports for alias in node.names}
            found += [f"{path.name}: {name}" for name in names & {"fcntl", "pwd", "grp", "resource", "termios"}]
    assert found == []


def printed(script: str) -> list[str]:
    """The words that a script prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()
