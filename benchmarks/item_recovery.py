"""What an honest but curious server learns of lone users: their items, from the updates of a normal run.

    python -m benchmarks.item_recovery --sizes full    measure, and keep the result
    python -m benchmarks.item_recovery --page          write the kept figures into docs/privacy.md
    python -m benchmarks.item_recovery --check         exit 1 if the page has other figures

MovieLens 1M as a deployment in one process: some users, drawn at random, have a node each, as phones have, and all
others share one node. What is measured, and how: `commands.audit.recovery`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch

from benchmarks import documents, rendering
from benchmarks.common import ROOT, case, options, table_overrides, write
from commands.audit.recovery import by_popularity, looked_at, share_out
from fedrec.config.compose import compose
from fedrec.config.paths import settle
from fedrec.data.prepare import load
from fedrec.data.types import Dataset
from fedrec.datasets.base import DatasetConfig

RESULTS = ROOT / "benchmarks" / "results" / "privacy"
PAGE = ROOT / "docs" / "privacy.md"


class Run(NamedTuple):
    """One run to look at: its name in the table, and what it sets."""

    name: str
    overrides: Sequence[str]


_PAPER = ["optim=paper", "strategy.rounds=100"]
_FAST = [
    "strategy.rounds=100",
    "codec=int8",
    "optim=fast",
    "optim.negatives=1000",
    "optim.private_anew=true",
    "optim.private_optimiser=sgd",
    "optim.private_steps=6",
    "optim.private_lr=1.0",
    "optim.half_life=2.0",
    "optim.shared_half_life=5.0",
    "optim.solve_steps=6",
    "optim.solve_lr=1.0",
]
_LORA = ["embedding=lora", "strategy.merge_every=12"]
_HASH = ["embedding=hash", "embedding.buckets=125", "embedding.scaling=0.03"]
_CODES = ["embedding=rqvae", "embedding.levels=2", "embedding.codes=60", "embedding.scaling=0.03"]
_PSEUDO = "privacy=pseudo_items"
RUNS = (
    Run("paper, full", [*_PAPER, "strategy=full"]),
    Run("paper, full, pseudo_items", [*_PAPER, "strategy=full", _PSEUDO]),
    Run("paper, lora", [*_PAPER, "embedding=lora"]),
    Run("paper, hash", [*_PAPER, "embedding=hash"]),
    Run("paper, rqvae", [*_PAPER, "embedding=rqvae"]),
    Run("fast, full, int8", [*_FAST, "strategy=full"]),
    Run("fast, lora, int8", [*_FAST, *_LORA]),
    Run("fast, lora, int8, pseudo_items", [*_FAST, *_LORA, _PSEUDO]),
    Run("fast, hash, int8", [*_FAST, *_HASH]),
    Run("fast, rqvae, int8", [*_FAST, *_CODES]),
)


def overrides(run: Run, items: Path, rounds: int | None = None) -> list[str]:
    """What a run sets of the configuration; with `rounds` so many rounds of half the users, for a quick look."""
    chosen = {text.partition("=")[0]: text for text in run.overrides}
    if rounds is not None:
        chosen["strategy.rounds"] = f"strategy.rounds={rounds}"
        chosen["federation.fraction"] = "federation.fraction=0.5"
        if "strategy=full" not in run.overrides:
            chosen["strategy.warmup_rounds"] = f"strategy.warmup_rounds={rounds // 3}"
    return [
        "runtime=deployment",
        "dataset=table",
        f"dataset.item_table={items}",
        "dataset.text_columns=[text]",
        "evaluation.every=0",
        *chosen.values(),
    ]


def load_dataset(data: Path | None) -> Dataset:
    """MovieLens 1M in a folder of data sets; None: a small synthetic shop."""
    if data is None:
        texts = ["dataset.n_users=60", "dataset.n_items=80"]
    else:
        texts = [*table_overrides(data), "dataset.text_columns=[title,genres]", "dataset.items=rated"]
    return load(cast(DatasetConfig, compose(texts, base=None).dataset))


def look(number: int, data: str | None, lone: int, rounds: int | None, threads: int | None = None) -> dict[str, Any]:
    """Carry out a run of `RUNS` and compare what was seen of the lone users with what is so."""
    torch.set_num_threads(threads or 1)
    with tempfile.TemporaryDirectory(prefix="item-recovery-") as place:
        folder = Path(place)
        share = share_out(load_dataset(None if data is None else Path(data)), lone, folder)
        texts = [*overrides(RUNS[number], share.items, rounds), f"runs_dir={folder}/runs", f"cache_dir={folder}/cache"]
        summary, found = looked_at(settle(compose(texts, base=None), None), texts, share)
        return {**found, "test_ndcg@10": summary["test"]["ndcg@10"]}


# ---- the result, and the page that shows it -------------------------------------------------------------------------


def shown(result: dict[str, Any]) -> str:
    """A line for each run: what one update of the last phase tells, and what all updates of the run do."""
    head = ["run", "one update: AUC", "precision", "last 10: AUC", "precision", "run: AUC", "precision", "last 10"]
    names = ("history_auc", "history_precision", "last_auc", "last_precision")
    rows = []
    for entry in result["figures"]["runs"]:
        one, whole = entry["one_update"], entry["whole_run"]
        values = [*(one[name] for name in names), *(whole[name] for name in (*names[:2], names[3]))]
        rows.append([entry["name"], *(f"{value:.2f}" for value in values)])
    popular = [f"{result['figures']['popularity'][name]:.2f}" for name in names]
    return f"\n{rendering.table(head, [*rows, ['popularity alone', *popular, '-', '-', '-']])}\n"


def popularity(data: str | None, lone: int) -> dict[str, float]:
    """What somebody recovers who knows nothing but how many users have each item."""
    with tempfile.TemporaryDirectory(prefix="item-recovery-") as place:
        dataset = load_dataset(None if data is None else Path(data))
        return by_popularity(dataset, share_out(dataset, lone, Path(place)).histories)


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out what the command line asks for; the exit status."""

    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--synthetic", action="store_true", help="a small made-up shop, to see that it runs")
        parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
        parser.add_argument("--page", action="store_true", help="write the kept figures into docs/privacy.md")
        parser.add_argument("--check", action="store_true", help="exit 1 if docs/privacy.md has other figures")
        parser.set_defaults(out=RESULTS / "item_recovery.json")

    opts = options("item_recovery", __doc__, arguments, more)
    if opts.extra.page or opts.extra.check:
        found = json.loads(opts.out.read_text(encoding="utf-8"))
        command = "python -m benchmarks.item_recovery --page"
        return documents.write(PAGE, {"recovery": shown(found)}, command=command, check=opts.extra.check)
    data = None if opts.extra.synthetic else str(opts.data)
    lone, rounds = (50, None) if opts.full else (10, 6)

    def measured(number: int) -> dict[str, Any]:
        look_at = "benchmarks.item_recovery:look"
        found = case(look_at, threads=1, timeout=7200.0, number=number, data=data, lone=lone, rounds=rounds)
        print(f"{RUNS[number].name}: {found.get('failed') or found['whole_run']}", file=sys.stderr, flush=True)
        return {"name": RUNS[number].name, **found}

    with ThreadPoolExecutor(opts.extra.jobs) as pool:
        found = list(pool.map(measured, range(len(RUNS))))
    configuration = {
        "data": "synthetic" if opts.extra.synthetic else "MovieLens 1M",
        "lone_users": lone,
        "command": "python -m benchmarks.item_recovery --sizes " + opts.sizes,
        "overrides": {run.name: overrides(run, Path("items.csv"), rounds) for run in RUNS},
    }
    write(opts, "item_recovery", configuration, {"runs": found, "popularity": popularity(data, lone)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
