"""The paper's comparison, honestly: every method on every backbone for the same number of rounds, on real data.

    python -m benchmarks.methods run --data DATA --runs RUNS [--model MODEL] [--backbone fedmf ...] [--jobs 2]
    python -m benchmarks.methods page            write the tables into docs/methods.md
    python -m benchmarks.methods page --check    exit 1 if the page has other tables

DATA holds the folders ml-1m and amazon-industrial, each with interactions.csv and items.csv. A run that is kept already
is not carried out again. Kept runs lie in `benchmarks/results/methods/`, one JSON each, in the form of
`benchmarks.results_table`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import documents
from benchmarks.results_table import ROOT, kept

FOLDER = ROOT / "benchmarks" / "results" / "methods"
PAGE = ROOT / "docs" / "methods.md"
ROUNDS = 200

METHODS: Mapping[str, Sequence[str]] = {
    "Full": ["strategy=full"],
    "C-LoRA": ["embedding=lora", "embedding.variant=C"],
    "P-LoRA": ["embedding=lora"],
    "P-Hash": ["embedding=hash"],
    "P-Hash+SENet": ["embedding=hash_senet"],
    "P-RQ-VAE": ["embedding=rqvae"],
}
DATA: Mapping[str, tuple[str, str]] = {
    "MovieLens 1M": ("ml-1m", "[title,genres]"),
    "Amazon Industrial": ("amazon-industrial", "[title,brand,description]"),
}
BACKBONES = ("fedmf", "fedncf", "pfedrec", "fedpergnn")
SEEDS: Mapping[str, Sequence[int]] = {"fedmf": (0, 1, 2)}


class Cell(NamedTuple):
    """One run of the comparison."""

    data: str
    backbone: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """As the kept file is called."""
        return re.sub(r"[^a-z0-9]+", "-", f"{self.data} {self.backbone} {self.method} seed {self.seed}".lower())


def cells(backbones: Sequence[str] = BACKBONES, data: Collection[str] = tuple(DATA)) -> list[Cell]:
    """All runs of the comparison."""
    chosen = itertools.product(backbones, [name for name in DATA if name in data], METHODS)
    return [Cell(d, b, m, seed) for b, d, m in chosen for seed in SEEDS.get(b, (0,))]


def overrides(cell: Cell, data: Path, model: str | None) -> list[str]:
    """What the run sets of the configuration."""
    folder, columns = DATA[cell.data]
    texts = ["encoder=sentence_transformer", f"encoder.model={model}"] if model else []
    return [
        "dataset=table",
        f"dataset.interactions={data / folder / 'interactions.csv'}",
        f"dataset.item_table={data / folder / 'items.csv'}",
        f"dataset.text_columns={columns}",
        *texts,
        f"backbone={cell.backbone}",
        *METHODS[cell.method],
        f"strategy.rounds={ROUNDS}",
        "evaluation.every=0",
        "evaluation.sampled_negatives=100",
        f"evaluation.baselines={'true' if cell.method == 'Full' and cell.seed == 0 else 'false'}",
        f"seed={cell.seed}",
    ]


def run(cell: Cell, data: Path, runs: Path, model: str | None) -> str:
    """Carry out one run in a process of its own and keep it; a line that says what came of it."""
    path = FOLDER / f"{cell.name}.json"
    if path.exists():
        return f"{cell.name}: kept already"
    command = [sys.executable, "-m", "commands.cli", "train", *overrides(cell, data, model)]
    places = [f"runs_dir={runs}", f"run_id={cell.name}", "--json"]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, *places], cwd=ROOT, env=one_thread, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"{cell.name}: failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
    FOLDER.mkdir(parents=True, exist_ok=True)
    result = {**kept(cell.name, runs / cell.name), "cell": cell._asdict()}
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return f"{cell.name}: NDCG@10 {result['summary']['test']['ndcg@10']:.4f}"


def tables(results: Sequence[Mapping[str, Any]]) -> str:
    """A table for each data set and backbone: metrics as mean (and spread over seeds), and bytes of one user."""
    found: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for result in results:
        cell = Cell(**result["cell"])
        found.setdefault((cell.data, cell.backbone, cell.method), []).append(result["summary"])
    parts = []
    for data in DATA:
        parts.append(f"### {data}\n")
        parts.append(_baselines(found, data))
        parts.append(
            "| backbone | method | NDCG@10 | HR@10 | sampled NDCG@10 | sampled HR@10 | up | down | once |\n"
            "|---|---|---:|---:|---:|---:|---:|---:|---:|\n"
            + "".join(
                _row(backbone, method, found[data, backbone, method])
                for backbone in BACKBONES
                for method in METHODS
                if (data, backbone, method) in found
            )
        )
    return "\n".join(parts)


def _baselines(found: Mapping[tuple[str, str, str], Sequence[Mapping[str, Any]]], data: str) -> str:
    known = next((s["baselines"] for key, runs in found.items() if key[0] == data for s in runs if s["baselines"]), {})
    named = [f"{name.replace('_', ' ')} {metrics['ndcg@10']:.4f}" for name, metrics in known.items()]
    return f"Baselines, NDCG@10 in full ranking: {', '.join(named) or 'not measured'}.\n"


def _row(backbone: str, method: str, runs: Sequence[Mapping[str, Any]]) -> str:
    names = ("ndcg@10", "hr@10", "sampled100/ndcg@10", "sampled100/hr@10")
    values = [_spread([run["test"][name] for run in runs]) for name in names]
    moved = [f"{np.mean([run['bytes_per_user'][way] for run in runs]):,.0f}" for way in ("up", "down", "one_time")]
    return f"| {' | '.join([backbone, method, *values, *moved])} |\n"


def _spread(values: Sequence[float]) -> str:
    mean = f"{np.mean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.4f}"


def page(check: bool) -> int:
    """Write the tables between the page's two marks; with `check` only say whether they stand there."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))]
    blocks = {"methods": f"\n{tables(results)}\n"}
    return documents.write(PAGE, blocks, command="python -m benchmarks.methods page", check=check)


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out what the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(description="Every method on every backbone.")
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run")
    runner.add_argument("--data", type=Path, required=True)
    runner.add_argument("--runs", type=Path, required=True)
    runner.add_argument("--model", help="a sentence-transformer, by name or absolute path (default: tf-idf)")
    runner.add_argument("--backbone", nargs="+", choices=BACKBONES, default=list(BACKBONES))
    runner.add_argument("--only", nargs="+", choices=list(DATA), default=list(DATA), help="data sets")
    runner.add_argument("--jobs", type=int, default=1)
    commands.add_parser("page").add_argument("--check", action="store_true")
    chosen = parser.parse_args(arguments)
    if chosen.command == "page":
        return page(chosen.check)
    with ThreadPoolExecutor(chosen.jobs) as pool:
        work = [
            pool.submit(run, cell, chosen.data, chosen.runs, chosen.model)
            for cell in cells(chosen.backbone, chosen.only)
        ]
        lines = []
        for done in work:
            lines.append(done.result())
            print(lines[-1], flush=True)
    return int(any(": failed" in line for line in lines))


if __name__ == "__main__":
    sys.exit(main())
