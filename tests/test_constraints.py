"""The pinned versions: complete, and the same with and without hashes."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]


def pins(name: str) -> dict[str, str]:
    """Version by canonical name, as a file pins them."""
    found = re.findall(r"^([\w.-]+)==(\S+)", (ROOT / name).read_text(), re.MULTILINE)
    assert len({canonicalize_name(package) for package, _ in found}) == len(found), "each once"
    return {canonicalize_name(package): number for package, number in found}


def test_the_hashed_constraints_are_the_constraints() -> None:
    assert pins("constraints-hashed.txt") == pins("constraints.txt")


def test_every_package_has_a_hash_and_nothing_else_is_in_the_file() -> None:
    text = (ROOT / "constraints-hashed.txt").read_text()
    package = r"[\w.-]+==\S+ \\\n(?:    --hash=sha256:[0-9a-f]{64} \\\n)*    --hash=sha256:[0-9a-f]{64}\n"
    assert re.fullmatch(f"(?:{package})+", text), "make it anew: CONTRIBUTING.md says how"


def test_all_that_fedrec_needs_is_pinned() -> None:
    """With --no-deps, what is not pinned is not installed: follow what the packages need, from what fedrec needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = pins("constraints-hashed.txt")
    extras = project["optional-dependencies"]
    waiting = [Requirement(text) for text in [*project["dependencies"], *extras["test"]]]
    seen: set[tuple[str, str]] = set()
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        assert name in pinned, f"{name} is not pinned"
        for extra in ["", *wanted.extras]:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            further = [Requirement(text) for text in requires(name) or []]
            waiting += [one for one in further if one.marker is None or one.marker.evaluate({"extra": extra})]
    assert pinned.keys() == {name for name, _ in seen}, "what nothing needs is not pinned"
