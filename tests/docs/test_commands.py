"""Every shell command of the documents is carried out on small data, or stands in a list that says why not.

A command of `fedrec` runs as it is printed, in this process, in a folder that has data where the documents look for
data. Two things are changed, and nothing else: words that stand for something of the reader's (`Place.stand_ins`), and
numbers that make a run long (`AT_MOST`). Commands of Flower are carried out by the tests marked `runtime`; here their
configuration is checked. A command that no line below knows fails the test.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest.mock import patch

import pytest
from flwr.common.config import parse_config_args
from typer.testing import CliRunner

from client_app.answers import app as app_module
from client_app.homes.site import site_of
from commands import candidates, cli, options, tune
from fedrec.config.compose import compose
from fedrec.config.schema import RunConfig

if TYPE_CHECKING:
    from tests.docs.conftest import Place

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:  # benchmarks are not installed
    sys.path.append(str(ROOT))
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])

AT_MOST: Mapping[str, float] = {
    "base_table.dim": 8,
    "central.epochs": 1,
    "dataset.interactions_per_user": 8,
    "dataset.n_items": 60,
    "dataset.n_users": 40,
    "dataset.topics": 5,
    "embedding.buckets": 20,
    "embedding.codes": 8,
    "embedding.steps": 5,
    "evaluation.sampled_negatives": 10,
    "optim.negatives": 5,
    "reduction.epochs": 2,
    "simulation.nodes": 4,
    "strategy.rounds": 2,
    "strategy.warmup_rounds": 1,
}
"""Larger values of a configuration become these, once it has been found valid as it is printed."""
HUB = "sentence-transformers/sentence-t5-base"
"""A model that would be fetched from the hub; one that is here takes its place."""


class Command(NamedTuple):
    """One command: its document and its text, on one line; or a script of several lines that belong together."""

    document: str
    text: str

    @property
    def name(self) -> str:
        """What the test of it is called."""
        return f"{self.document}: {self.text.splitlines()[0][:100]}"


def commands(path: Path) -> list[Command]:
    """Those of the shell blocks of a document. Blocks in any other language are no commands."""
    found = []
    for block in re.findall(r"^ *```(?:sh|bash|shell|console)\b.*?\n(.*?)^ *```$", path.read_text(), re.DOTALL | re.M):
        script = re.search(r"<<|^\(|^(for|until|while|if) ", block, re.MULTILINE)
        joined = re.sub(r" *\\\n *", " ", block)
        lines = [block] if script else [line.strip() for line in joined.splitlines() if line.strip()]
        found += [Command(path.name, line) for line in lines]
    return found


COMMANDS = list({command.text: command for path in DOCUMENTS for command in commands(path)}.values())
"""One that several documents show is carried out once."""
EXAMPLES = re.findall(r"^`conf/(\w+)/(\w+)\.yaml`:$", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.MULTILINE)
"""Members that CONTRIBUTING shows how to write: family and name."""


def words_of(text: str, place: Place) -> list[str]:
    """The words of a command as a shell sees them, with what stands in for the reader's own."""
    for written, meant in place.stand_ins.items():
        text = text.replace(written, meant)
    if "$(" not in text:
        return shlex.split(text, comments=True)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    script = f"printf '%s\\0' {text}"
    done = subprocess.run(["bash", "-c", script], env={**os.environ, "PATH": path}, capture_output=True, check=True)
    return done.stdout.decode().split("\0")[:-1]


def bounded(config: RunConfig, model: str) -> RunConfig:
    """A configuration with what makes a run long made small."""
    parts: dict[str, dict[str, Any]] = {}
    for key, most in AT_MOST.items():
        part, name = key.split(".")
        value = getattr(getattr(config, part), name, None)
        if key == "base_table.dim" and config.reduction.name == "none":  # as many as the encoder gives
            continue
        if isinstance(value, int | float) and value > most:
            parts.setdefault(part, {})[name] = type(value)(most)
    if hasattr(config.reduction, "hidden"):
        parts.setdefault("reduction", {})["hidden"] = (16,)
    if getattr(config.encoder, "model", None) == HUB:
        parts.setdefault("encoder", {})["model"] = model
    made = {part: dataclasses.replace(getattr(config, part), **values) for part, values in parts.items()}
    return dataclasses.replace(config, **made)


# ---- what is done with a command -------------------------------------------------------------------------------------


def carry_out(text: str, place: Place) -> None:
    """A command of `fedrec`, in this process; a simulation runs as `train`, which gives the same result."""
    program, verb, *rest = words_of(text, place)
    assert program == "fedrec"
    model = place.stand_ins["/absolute/folder/of/a/model"]
    app_module._node.cache_clear()

    def small(overrides: list[str], base: Path) -> RunConfig:
        return bounded(compose(overrides, base=base), model)

    # Commands of `fedrec tune` try all candidates; those of `train`, of which there are many, have a single one.
    among = tune.CANDIDATES if verb == "tune" else tune.CANDIDATES[-1:]
    composing = patch.object(options, "compose", small), patch.object(candidates, "compose", small)
    with composing[0], composing[1], patch.object(tune, "CANDIDATES", among):
        done = CliRunner().invoke(cli.app, [{"simulate": "train"}.get(verb, verb), *rest])
    assert done.exit_code == 0, done.output
    assert "Traceback" not in done.output


def configuration(text: str, place: Place) -> None:
    """The overrides of a run that Flower starts, and the other words of its command."""
    words = words_of(text, place)
    assert (ROOT / words[2] / "pyproject.toml").is_file()
    for word in words:
        if word.startswith("overrides="):
            overrides = shlex.split(str(parse_config_args([word])["overrides"]))
            if not any(override.startswith("resume=") for override in overrides):
                compose(overrides, base=None)


def site(text: str, place: Place) -> None:
    """The node configuration of a SuperNode is one that a site takes."""
    words = words_of(text, place)
    site_of(parse_config_args([words[words.index("--node-config") + 1]]))


def script(text: str, place: Place) -> None:
    """What a shell can read; and what the project has of it is there."""
    subprocess.run(["bash", "-n"], input=text, text=True, check=True, timeout=30)
    for name in re.findall(r"\bdeploy/[\w./*-]+|\.ci/run", text):
        assert list(ROOT.glob(name)), name


def installation(text: str, place: Place) -> None:
    """What is to be installed is this checkout, with extras that it has and versions that it names."""
    script(text, place)
    if not (install := re.search(r"pip install (.*?)(?:&&|$)", text, re.MULTILINE)):
        return
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    *options, target = shlex.split(install[1])
    if options[-1:] == ["-r"]:
        assert (ROOT / target).is_file()
        return
    found = re.fullmatch(r"\.(?:\[(\w+)\])?", target)
    assert found is not None, f"{target} is not this checkout"
    assert found[1] is None or found[1] in extras
    assert "-c constraints.txt" not in install[1] or (ROOT / "constraints.txt").is_file()


def benchmark(text: str, place: Place) -> None:
    """The benchmarks are there, and know the options that are shown."""
    installation(text, place)
    names = re.search(r"^for name in (.*); do$", text, re.MULTILINE)
    for line in re.findall(r"python -m benchmarks\..*", text):
        for name in names[1].split() if names and "$name" in line else [""]:
            words = shlex.split(line.replace("$name", name), comments=True)
            module = importlib.import_module(words[2])
            with pytest.raises(SystemExit) as told:  # an unknown option is told before the help of a known one
                module.main([*words[3:], "--help"])
            assert told.value.code == 0


_RUNTIME = "of real processes, under the mark `runtime`"
COVERED: list[tuple[str, Callable[[str, Place], None], str]] = [
    (r"deployment.md: .*\n", script, "tests/runtime/test_guide.py runs these scripts, word by word"),
    (r"deployment.md: (mkdir |openssl |printf |chmod |flwr (ls|supernode) |tail |kill )", script, "so does it these"),
    (r"fellrec.md: .*\n", script, f"tests/runtime/test_split_groups.py runs this script, {_RUNTIME}"),
    (r"\S+: fedrec supernode \.\.\. ", site, f"tests/runtime/test_deployment.py starts SuperNodes, {_RUNTIME}"),
    (
        r"fellrec.md: fedrec \w+ .*/models/",
        script,
        "of a model of 14 GB, and for a GPU; the page says that it has not been run",
    ),
    (r"\S+: fedrec \w+\b", carry_out, "here"),
    (r"\S+: flwr run \. ", configuration, f"tests/runtime/test_flwr_run.py and test_guide.py, {_RUNTIME}"),
    (r"simulation.md: (pkill |export FLWR)", script, f"tests/runtime/test_flwr_run.py, {_RUNTIME}"),
    (r"\S+: deploy/local-federation\.sh ", script, f"tests/runtime/test_deployment.py, {_RUNTIME}"),
    (r"\S+: (export |ray start )", script, f"tests/runtime/test_cluster.py starts a cluster, {_RUNTIME}"),
    (r"performance.md: .*\n", benchmark, "hours; tests/test_benchmarks.py runs each at a small size"),
    (r"\S+: python -m benchmarks\.", benchmark, "the same"),
    (r"\S+: (python3 -m venv|(\S*/)?pip install)", installation, "fetches packages: .ci/run carries it out"),
    (r"\S+: uv ", script, "asks the package index; tests/test_constraints.py checks what comes of it"),
    (r"CONTRIBUTING.md: (pytest |ruff |mypy |lint-imports|\.ci/run)", script, ".ci/run carries them out"),
    (
        r"deployment.md: (sudo |docker )",
        script,
        "for root, or for Docker; tests/runtime/test_guide.py checks the files",
    ),
]
"""A pattern of `document: command`, what is done with it here, and where it is carried out; the first that fits."""


def handler(command: Command) -> Callable[[str, Place], None] | None:
    """What to do with a command; None if no line knows it."""
    shown = f"{command.document}: {command.text}"
    return next((handle for pattern, handle, _ in COVERED if re.match(pattern, shown)), None)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_a_command_that_is_shown_does_what_it_should(command: Command, place: Place) -> None:
    handle = handler(command)
    assert handle is not None, "nothing here knows this command: carry it out, or say in COVERED why not"
    if any(f"{family}={name}" in command.text for family, name in EXAMPLES):
        pytest.skip("tests/test_docs.py carries out the worked examples of CONTRIBUTING, in a copy that has them")
    handle(command.text, place)
