"""Who took part in a run, told from its models: `fedrec audit membership`, with budgets of privacy and without.

    python -m benchmarks.membership --sizes full    measure, and keep each run
    python -m benchmarks.membership --page          write the kept figures into docs/privacy.md
    python -m benchmarks.membership --check         exit 1 if the page has other figures

MovieLens 100K, 200 candidates; a file for each run in `benchmarks/results/privacy/membership`. Runs that are kept
already are not done again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import documents, rendering
from benchmarks.common import ROOT, case, options

RESULTS = ROOT / "benchmarks" / "results" / "privacy" / "membership"
PAGE = ROOT / "docs" / "privacy.md"
CANDIDATES = 200
_FEW_ROUNDS = ["strategy=full", "optim=fast", "strategy.rounds=20", "federation.fraction=1", "federation.weight_cap=1"]
_MANY_ROUNDS = ["optim=fast", "strategy.rounds=100", "codec=int8"]
MODELS: Mapping[str, Sequence[str]] = {
    "full, everybody in 20 rounds": _FEW_ROUNDS,
    "the same, epsilon 8": [*_FEW_ROUNDS, "privacy=central_gaussian", "privacy.epsilon=8"],
    "the same, epsilon 2": [*_FEW_ROUNDS, "privacy=central_gaussian", "privacy.epsilon=2"],
    "full, a tenth in 100 rounds": ["strategy=full", *_MANY_ROUNDS],
    "P-LoRA, a tenth in 100 rounds": ["strategy=fedpeft", "embedding=lora", *_MANY_ROUNDS],
}
"""What is set for each line of the page."""


class Case(NamedTuple):
    """One run."""

    model: str
    canaries: bool

    @property
    def file(self) -> Path:
        """Where it is kept."""
        words = [*self.model.replace(",", "").lower().split(), "canaries" if self.canaries else "users"]
        return RESULTS / f"{'-'.join(words)}.json"


CASES = [Case(model, canaries) for model in MODELS for canaries in (True, False)]
"""All of the page."""


def audited(overrides: list[str], count: int, canaries: bool) -> dict[str, Any]:
    """One run, without its folder."""
    from rich.console import Console

    from commands.audit.membership import membership
    from fedrec.config.compose import compose
    from fedrec.config.paths import settle

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="membership-") as folder:
        texts = [*overrides, f"runs_dir={folder}/runs", f"cache_dir={tempfile.gettempdir()}/fedrec-benchmarks/cache"]
        quiet = Console(stderr=True, quiet=True)
        found = membership(settle(compose(texts, base=None), None), texts, count, canaries=canaries, console=quiet)
    del found["run"]
    return found


def shown(kept: Mapping[Case, Mapping[str, Any]]) -> str:
    """A line for each model: what tells canaries apart and the bound of epsilon, then users of the data."""
    head = [
        "run",
        "epsilon by the account",
        *(
            f"{who}: {what}"
            for who in ("canaries", "users")
            for what in ("AUC, all models", "last model", "epsilon over")
        ),
        "NDCG@10",
    ]
    return f"\n{rendering.table(head, [_line(model, kept) for model in MODELS])}\n"


def _line(model: str, kept: Mapping[Case, Mapping[str, Any]]) -> list[str]:
    each = [kept[Case(model, canaries)] for canaries in (True, False)]
    account = each[0]["account"]
    cells = [model, "none" if account is None else f"{account:.2f}"]
    for found in each:
        looks = [found[name] for name in ("all_models", "last_model")]
        cells += [*(f"{look['auc']:.2f}" for look in looks), f"{max(look['epsilon'] for look in looks):.2f}"]
    return [*cells, f"{each[1]['test']['ndcg@10']:.4f}"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out what the command line asks for; the exit status."""

    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--page", action="store_true", help="write the kept figures into docs/privacy.md")
        parser.add_argument("--check", action="store_true", help="exit 1 if docs/privacy.md has other figures")

    opts = options("membership", __doc__, arguments, more)
    if opts.extra.page or opts.extra.check:
        kept = {one: json.loads(one.file.read_text(encoding="utf-8")) for one in CASES}
        command = "python -m benchmarks.membership --page"
        return documents.write(PAGE, {"membership": shown(kept)}, command=command, check=opts.extra.check)
    data = ["dataset=ml_100k", f"dataset.root={opts.data}/ml-100k"] if opts.full else ["dataset.n_users=60"]
    for one in CASES if opts.full else CASES[1:2]:
        if opts.full and one.file.is_file():
            continue
        count = CANDIDATES if opts.full else 20
        overrides = [*MODELS[one.model], *data]
        found = case("benchmarks.membership:audited", overrides=overrides, count=count, canaries=one.canaries)
        print(f"{one}: {found.get('failed') or found['all_models']}", file=sys.stderr, flush=True)
        if opts.full and "failed" not in found:
            RESULTS.mkdir(parents=True, exist_ok=True)
            about = {"overrides": [*MODELS[one.model], "dataset=ml_100k"], **found}
            one.file.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
