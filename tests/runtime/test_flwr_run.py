"""Plain `flwr run`, as docs/simulation.md has it: its commands as they are printed, up to the one that ends it."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "simulation.md").read_text(encoding="utf-8")
SMALL = "dataset.n_users=40 dataset.n_items=60 strategy.rounds=2 strategy.warmup_rounds=1 base_table.dim=8"


def shown() -> tuple[list[str], str]:
    """The commands of the section, and the one that ends the SuperLink which they leave running."""
    section = PAGE[PAGE.index("## Plain `flwr run`") : PAGE.index("## Several machines")]
    first, last = re.findall(r"^ *```sh\n(.*?)^ *```$", section, flags=re.DOTALL | re.MULTILINE)
    return first.splitlines(), last.strip()


def smaller(line: str) -> str:
    """A `flwr run` of a small run: some more overrides, where the command has overrides or after all its words."""
    if not line.startswith("flwr run"):
        return line
    found = re.sub(r"overrides='", f"overrides='{SMALL} ", line)
    return found if found != line else f"{line} --run-config \"overrides='{SMALL}'\""


@pytest.mark.runtime
def test_the_commands_run_and_the_last_one_leaves_nothing_running(place: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    lines, end = shown()
    assert "39091" in end, "the port that Flower takes if it is told no other"
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {name: value for name, value in place.env.items() if not name.startswith("FLWR_")}
    env |= {"PATH": programs, "FLWR_HOME": str(place.path / "flwr"), "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": port}
    env |= {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}

    def bash(script: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", script], cwd=ROOT, env=env, check=False, text=True, capture_output=True, timeout=600
        )

    try:
        done = bash("\n".join(["set -e", *map(smaller, lines)]))
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        found = sorted((place.path / "home" / "runs").glob("*/summary.json"))
        assert [json.loads(path.read_text())["rounds"] for path in found] == [2, 2]
        assert place.marked(), "the SuperLink goes on after the runs"
        done = bash(end.replace("39091", port))
        assert done.returncode == 0, done.stdout + done.stderr
        deadline = time.monotonic() + 60
        while place.marked() and time.monotonic() < deadline:
            time.sleep(0.5)
        assert place.marked() == {}
    finally:
        for pid in place.marked():
            os.kill(pid, 9)
