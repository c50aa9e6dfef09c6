"""What SECURITY.md and docs/security.md say of units and defaults is what these are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fedrec.config.compose import compose
from fedrec.config.schema import ROW_OF_GRADIENTS

ROOT = Path(__file__).resolve().parent.parent
UNITS = ROOT / "deploy" / "systemd"
THREATS = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
LIMITS = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")

GRANTED = {
    "a user of its own": ["User=fedrec-site", "NoNewPrivileges=yes", "CapabilityBoundingSet="],
    "read-only data": ["ProtectSystem=strict", "ProtectHome=yes", "StateDirectory=fedrec-%i"],
    "no address but the front's": ["IPAddressDeny=any", "IPAddressAllow=localhost"],
    "no other process": ["ProtectProc=invisible"],
    "bounded memory": ["MemoryMax=8G"],
}


@pytest.mark.parametrize("words", GRANTED)
def test_the_unit_of_a_site_grants_what_is_said_of_it(words: str) -> None:
    assert words in THREATS
    lines = (UNITS / "fedrec-supernode@.service").read_text(encoding="utf-8").splitlines()
    assert set(GRANTED[words]) <= set(lines)
    paths = [line for line in lines if re.match(r"(ReadWritePaths|BindPaths|IPAddressAllow)=", line)]
    assert paths == ["IPAddressAllow=localhost"], "nothing else is opened again"


@pytest.mark.parametrize("unit", ["fedrec-superlink", "fedrec-supernode@"])
def test_what_flower_asks_no_login_for_listens_on_the_loopback_address(unit: str) -> None:
    text = (UNITS / f"{unit}.service").read_text(encoding="utf-8")
    assert re.findall(r"--host (\S+)", text) == ["127.0.0.1"]


def test_the_limits_that_are_named_are_the_defaults_of_a_deployment() -> None:
    rules = compose([], base=None).federation
    limits = rules.node_limits(simulated=False)
    assert f"at most {limits.users:,} users, as many new ones in a run, and a half of a mean" in THREATS
    assert (limits.growth, limits.share) == (1.0, 0.5)
    for name, value in (("users", f"{limits.users:,}"), ("growth", limits.growth), ("share", limits.share)):
        assert f"| `federation.max_node_{name}` | {value} |" in LIMITS
    assert f"So in a deployment `auto` is {ROW_OF_GRADIENTS:g} with such a recipe" in LIMITS
