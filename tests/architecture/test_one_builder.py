"""A run's models are made in one place, so that server, clients and reports cannot come to speak of different ones."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("fedrec", "peft_embeddings", "exchanges", "federation", "strategies", "client_app", "server_app")
ROOMS += ("commands", "benchmarks")
BUILDER = "peft_embeddings/model.py"


def makers(name: str) -> set[str]:
    """The files that call the class of that name."""
    found = set()
    for path in (path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        if any(isinstance(call.func, ast.Name) and call.func.id == name for call in calls):
            found.add(path.relative_to(ROOT).as_posix())
    return found


def test_one_file_makes_models() -> None:
    assert makers("Model") == {BUILDER}
