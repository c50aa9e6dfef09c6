"""The guide to deployments: its commands run as they are written, and its files are what their readers take."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))


def by_hand() -> str:
    """The commands of the section *By hand* that are to be run, in their order."""
    section = GUIDE[GUIDE.index("## By hand") : GUIDE.index("## As services")]
    return "\n".join(re.findall(r"^```sh\n(.*?)^```$", section, flags=re.DOTALL | re.MULTILINE))


@pytest.mark.runtime
def test_the_commands_by_hand_carry_out_a_run(tmp_path: Path) -> None:
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "HOME": str(tmp_path), "PATH": programs, "PYTHONPATH": str(ROOT)}
    env = {name: value for name, value in env.items() if not name.startswith(("FLWR_", "FEDREC_"))}
    script = f"set -eu\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{by_hand()}\nwait\n"
    done = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env=env, check=False, text=True, capture_output=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    folder = tmp_path / "federation/fedrec/runs/first"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["test"]["users"] == 40
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 4


def test_what_the_guide_counts_is_what_the_code_counts() -> None:
    """Every name in the table of losses is one that something in the code is counted under."""
    table = GUIDE[GUIDE.index("## When something is lost") : GUIDE.index("With `federation.over_sampling")]
    names = {name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[-2:][0])}
    assert {"no_answer", "rested", "late", "oversized", "round_repeated"} <= names
    code = "".join(
        path.read_text() for room in ("federation", "exchanges", "fedrec") for path in (ROOT / room).rglob("*.py")
    )
    assert [name for name in sorted(names) if f'"{name}"' not in code] == []


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_the_units_are_what_systemd_takes(unit: Path, tmp_path: Path) -> None:
    text = unit.read_text(encoding="utf-8")
    keys = {line.partition("=")[0] for line in text.splitlines() if re.match(r"[A-Z]\w+=", line)}
    assert {"ExecStart", "Restart", "StateDirectory", "User", "WantedBy"} <= keys
    command = text[text.index("ExecStart=") : text.index("Restart=")]
    program, *options = re.findall(r"(?:ExecStart=|\s)(/(?:opt|usr)/\S+|--[\w-]+)", command)
    program = "flower-supernode" if "/fedrec supernode" in command else program  # it takes the same options
    if program.endswith("nginx"):
        return  # tests/runtime/test_outsider.py starts it
    known = subprocess.run(
        [str(Path(sys.executable).with_name(Path(program).name)), "--help"], text=True, capture_output=True, check=True
    ).stdout
    assert [option for option in options if option not in known] == []
    if shutil.which("systemd-analyze"):
        installed = tmp_path / unit.name.replace("@", "@shop")
        installed.write_text(text.replace("/opt/fedrec/bin/", f"{Path(sys.executable).parent}/"))
        checked = subprocess.run(
            ["systemd-analyze", "verify", str(installed)], text=True, capture_output=True, check=False
        )
        assert (checked.returncode, checked.stderr) == (0, "")


def test_the_compose_file_is_of_the_right_form() -> None:
    found: dict[str, Any] = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text(encoding="utf-8"))
    services = found["services"]
    assert services.keys() == {"superlink", "front", "site-0", "site-1"}
    front = services.pop("front")
    assert front["network_mode"] == "service:superlink", "it shares the loopback address with the SuperLink"
    assert "ports" not in services["site-0"]
    assert services["superlink"]["ports"] == ["9092:9092"]
    assert {"--host=127.0.0.1", "--port=9093"} <= set(services["superlink"]["command"]), "reached by the front alone"
    conf = (ROOT / "deploy/nginx.conf").read_text(encoding="utf-8")
    inside = [volume.split(":")[1] for volume in front["volumes"]]
    assert set(re.findall(r" (/etc/fedrec/[\w.]+);", conf)) <= set(inside)
    assert "listen 9092 ssl" in conf
    for name, service in services.items():
        keys = {"build", "command", "entrypoint", "environment", "ports", "volumes", "restart", "depends_on"}
        assert service.keys() <= keys
        assert service.get("entrypoint") == (None if name == "superlink" else ["fedrec", "supernode"])
        assert (ROOT / "deploy" / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        image = "flwr/superlink:1.41.0" if name == "superlink" else "flwr/supernode:1.41.0"
        assert service["build"]["args"] == {"IMAGE": image}
        assert all(isinstance(value, str) for value in service["environment"].values())
        mounted = {volume.split(":")[1]: volume.split(":")[0] for volume in service["volumes"]}
        assert {source for source in mounted.values() if not source.startswith("./")} == {name}
        assert name in found["volumes"]
        for argument in service["command"]:
            path = re.search(r"=('?)(/[\w./-]+)", argument)
            if path:
                assert any(Path(path[2]).is_relative_to(place) for place in mounted), argument
        if name != "superlink":
            assert service["depends_on"] == ["front"]
            assert any("superlink:9092" in argument for argument in service["command"])
            assert mounted["/state"] == name, "a state-dir is nobody else's"
    assert "superlink" in GUIDE[GUIDE.index("## In containers") :]
