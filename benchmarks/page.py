"""The figures in docs/performance.md, simulation.md, deployment.md and scale.md: filled in from the result files.

    python -m benchmarks.page           write the blocks
    python -m benchmarks.page --check   exit 1 if a block says something else than the results

Each benchmark says itself how its result is shown (`BLOCKS`). Values are medians, with least and most.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import documents
from benchmarks.common import RESULTS, ROOT
from benchmarks.rendering import table

PAGES = tuple(ROOT / "docs" / name for name in ("performance.md", "simulation.md", "deployment.md", "scale.md"))
_BLOCK = re.compile(r"<!-- speed:([a-z-]+):begin -->")
_MISSING = "*Not measured yet: `python -m benchmarks.{name} --sizes full`.*\n"

BENCHMARKS = (
    "engine",
    "clipping",
    "uplinks",
    "against",
    "stock_flower",
    "pfl_task",
    "round_phases",
    "sequences",
    "scaling",
    "evaluation",
    "reading",
    "pretraining",
    "one_user_per_node",
    "many_devices",
    "secure_sums",
    "language_model",
    "title_generator",
    "startup",
    "light_client",
    "deployment",
    "large_catalogue",
)

RESULTS_OF_THEIR_OWN = ("recipes",)
"""Blocks whose result has their name, and not that of the benchmark that writes it."""

IMAGES = {
    "image-engines": "Client updates a second",
    "image-engine-parts": "Where the engine's time goes",
    "image-round-parts": "Where a round's time goes",
    "image-scaling": "How cost grows",
}
"""Pictures of `benchmarks.plot`, shown once they are there."""


def _where(results: dict[str, Any]) -> str:
    """Versions and cores of each result file."""
    rows = []
    for name, result in sorted(results.items()):
        found = result["environment"]
        packages = ", ".join(f"{package} {number}" for package, number in found["packages"].items())
        cores, memory = found["cores"], f"{found['memory_gib']:.0f} GiB"
        rows.append(
            [name, result["sizes"], cores, memory, found["load_before"], f"Python {found['python']}, {packages}"]
        )
    return table(["result", "sizes", "cores", "memory", "load before", "versions"], rows)


def _renderers() -> dict[str, tuple[str, Callable[[dict[str, Any]], str]]]:
    """For each block the benchmark whose result it shows, and what renders it."""
    return {
        block: (block if block in RESULTS_OF_THEIR_OWN else name, render)
        for name in BENCHMARKS
        for block, render in importlib.import_module(f"benchmarks.{name}").BLOCKS.items()
    }


def blocks(text: str, results: Mapping[str, Any]) -> dict[str, str]:
    """What stands in each block that a document has. Raises KeyError for a block of no known name."""
    renderers, found = _renderers(), {}
    for name in _BLOCK.findall(text):
        if name in IMAGES:
            image = f"img/{name.replace('image-', 'speed-', 1)}.png"
            shown = f"\n![{IMAGES[name]}]({image})\n\n" if (PAGES[0].parent / image).is_file() else ""
        elif name == "where":
            shown = f"\n{_where(results)}\n"
        else:
            needed, render = renderers[name]
            body = render(results[needed]) if needed in results else _MISSING.format(name=needed)
            shown = f"\n{body}\n"
        found[f"speed:{name}"] = shown
    return found


def fill(text: str, results: Mapping[str, Any]) -> str:
    """The document with every block as the results have it."""
    for name, body in blocks(text, results).items():
        text = documents.spliced(text, name, body)
    return text


def load(folder: Path = RESULTS) -> dict[str, Any]:
    """The result files by name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out what the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parsed = parser.parse_args(arguments)
    results = load(parsed.results)
    statuses = [
        documents.write(
            page,
            blocks(page.read_text(encoding="utf-8"), results),
            command="python -m benchmarks.page",
            check=parsed.check,
        )
        for page in PAGES
    ]
    return max(statuses)


if __name__ == "__main__":
    sys.exit(main())
