"""What the tests of real processes share: `fedrec` in a process of its own, and what it leaves behind."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import commands
from commands.processes import running

ROOT = str(Path(commands.__file__).resolve().parent.parent)
TINY = [
    "dataset.n_users=40",
    "dataset.n_items=60",
    "dataset.interactions_per_user=8",
    "strategy.rounds=3",
    "strategy.warmup_rounds=1",
    "federation.fraction=0.5",
    "base_table.dim=8",
    "evaluation.every=2",
    "run_id=tiny",
]


class Place:
    """A directory of its own for one test, in whose `empty` the commands are called.

    Attributes:
        path: The directory.
        env: The commands' environment, with a mark in it that all they start inherits.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.env = {**os.environ, "PYTHONPATH": ROOT, "FEDREC_HOME": str(path / "home"), "FEDREC_TEST": str(path)}
        self.env.pop("RAY_ADDRESS", None)
        self._empty = path / "empty"
        self._empty.mkdir()

    def folder(self, run: str = "tiny") -> Path:
        """The folder of a run."""
        return self._empty / "runs" / run

    def metrics(self, run: str = "tiny") -> list[dict[str, Any]]:
        """A run's records of rounds, without the times."""
        lines = [json.loads(line) for line in (self.folder(run) / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]

    def start(
        self, *overrides: str, command: str = "simulate", only: bool = False, **env: str
    ) -> subprocess.Popen[str]:
        """Start a tiny run, or one of these overrides alone; later overrides replace earlier ones."""
        given = {override.partition("=")[0]: override for override in [*(() if only else TINY), *overrides]}
        return subprocess.Popen(
            [sys.executable, "-m", "commands.cli", command, "--json", *given.values()],
            cwd=self._empty,
            env=self.env | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finished(self, process: subprocess.Popen[str], timeout: float = 900.0) -> tuple[int, dict[str, Any], str]:
        """Wait for the end: exit status, last line of standard output, standard error."""
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.terminate()  # it ends all that it has started
            process.communicate()
            raise
        lines = out.splitlines()
        return process.returncode, json.loads(lines[-1]) if lines else {}, err

    def marked(self) -> dict[int, str]:
        """Processes that still carry the mark in their environment, with their command lines."""
        mark = f"FEDREC_TEST={self.path}".encode()
        found = {}
        for process in running():
            try:
                if mark in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0"):
                    text = Path(f"/proc/{process.pid}/cmdline").read_bytes()
                    found[process.pid] = text.replace(b"\0", b" ").decode()
            except OSError:
                continue
        return found

    def remains(self) -> list[str]:
        """Marked processes, and the private folder of the run if it still exists."""
        log = (self.folder() / "flower.log").read_text()
        private = re.search(r"installed fedrec to (\S+?/fedrec-\w+)/home", log)
        assert private is not None
        return [*self.marked().values(), *([private[1]] if Path(private[1]).exists() else [])]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)
