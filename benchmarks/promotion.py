"""What users in one hand reach who push an item: `fedrec audit promotion` for each embedding, with limits and without.

    python -m benchmarks.promotion --sizes full    measure, and keep each run
    python -m benchmarks.promotion --page          write the kept figures into docs/security.md
    python -m benchmarks.promotion --check         exit 1 if the page has other figures

Each figure is of one run with one target, which is drawn from the seed; a file of its own in `benchmarks/results/audit`
has it. Runs that are kept already are not done again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import documents, rendering
from benchmarks.common import ROOT, case, options
from fedrec.config.schema import ROW_OF_GRADIENTS

RESULTS = ROOT / "benchmarks" / "results" / "audit"
PAGE = ROOT / "docs" / "security.md"
ATTACKS = ("one_row", "popularity", "surrogate", "adaptive")
SHARES = (0.01, 0.05, 0.001)
_FAST = ["optim=fast", "strategy.rounds=100"]
MODELS: Mapping[str, Sequence[str]] = {
    "paper, full": ["optim=paper", "strategy.rounds=100", "strategy=full"],
    "fast, full": [*_FAST, "strategy=full"],
    "fast, lora": [*_FAST, "embedding=lora"],
    "fast, hash": [*_FAST, "embedding=hash", "embedding.buckets=125", "embedding.scaling=0.03"],
    "fast, rqvae": [*_FAST, "embedding=rqvae", "embedding.levels=2", "embedding.codes=60", "embedding.scaling=0.03"],
}
"""What is set for each recipe and embedding: sizes as in docs/privacy.md."""

_REST = ["evaluation.every=0", "evaluation.baselines=false", "checkpoint_every=0"]


class Case(NamedTuple):
    """One run: with rows limited as in a deployment, or not at all."""

    model: str
    attack: str
    share: float
    limited: bool

    @property
    def file(self) -> Path:
        """Where it is kept."""
        words = [*self.model.split(", "), self.attack, f"{100 * self.share:g}", "limited" if self.limited else "free"]
        return RESULTS / f"{'-'.join(words)}.json"

    def overrides(self) -> list[str]:
        """What it sets, but for the data and folders."""
        limit: object = "null"
        if self.limited:
            limit = "auto" if self.model.startswith("paper") else ROW_OF_GRADIENTS
        return [*MODELS[self.model], *_REST, f"federation.max_row_norm={limit}"]


def cases() -> Iterator[Case]:
    """All runs: of each model one without attackers, with limits and without, and each attack at each share."""
    for model in MODELS:
        yield from (Case(model, "one_row", 0.0, limited) for limited in (False, True))
    for share in SHARES:
        for model in MODELS:
            yield from (Case(model, attack, share, limited) for attack in ATTACKS for limited in (False, True))


def attacked(overrides: list[str], attack: str, share: float) -> dict[str, Any]:
    """One run, without its folder."""
    from rich.console import Console

    from commands.audit.promotion import promotion
    from fedrec.config.compose import compose
    from fedrec.config.paths import settle

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="promotion-") as folder:
        texts = [*overrides, f"runs_dir={folder}/runs", f"cache_dir={tempfile.gettempdir()}/fedrec-benchmarks/cache"]
        config = settle(compose(texts, base=None), None)
        found = promotion(config, texts, attack, share, console=Console(stderr=True, quiet=True))
    del found["run"]
    return found


def shown(kept: Mapping[Case, Mapping[str, Any]]) -> str:
    """A line for each model and attack: ER@10 at each share without and with limits; then what these cost."""
    shares = sorted(SHARES)
    head = [
        "recipe, embedding",
        "attack",
        *(f"{100 * share:g} % {how}" for share in shares for how in ("free", "limited")),
    ]
    rows = [
        [
            model,
            attack,
            *(_figure(kept.get(Case(model, attack, share, of))) for share in shares for of in (False, True)),
        ]
        for model in MODELS
        for attack in ATTACKS
    ]
    quiet = [
        [model, *(_honest(kept.get(Case(model, "one_row", 0.0, limited))) for limited in (False, True))]
        for model in MODELS
    ]
    cost = rendering.table(["recipe, embedding", "NDCG@10 without limits", "NDCG@10 with limits"], quiet)
    return f"\n{rendering.table(head, rows)}\nThe honest users' test, without attackers:\n\n{cost}\n"


def _honest(found: Mapping[str, Any] | None) -> str:
    return "-" if found is None else f"{found['test']['ndcg@10']:.4f}"


def _figure(found: Mapping[str, Any] | None) -> str:
    return "-" if found is None else f"{found['er@10']:.3f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out what the command line asks for; the exit status."""

    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--page", action="store_true", help="write the kept figures into docs/security.md")
        parser.add_argument("--check", action="store_true", help="exit 1 if docs/security.md has other figures")

    opts = options("promotion", __doc__, arguments, more)
    if opts.extra.page or opts.extra.check:
        kept = {one: json.loads(one.file.read_text(encoding="utf-8")) for one in cases() if one.file.is_file()}
        command = "python -m benchmarks.promotion --page"
        return documents.write(PAGE, {"promotion": shown(kept)}, command=command, check=opts.extra.check)
    data = ["dataset=ml_100k", f"dataset.root={opts.data}/ml-100k"] if opts.full else ["strategy.rounds=3"]
    chosen = cases() if opts.full else [Case("fast, full", "adaptive", 0.05, limited=True)]
    for one in chosen:
        if opts.full and one.file.is_file():
            continue
        overrides = one.overrides() if opts.full else [text for text in one.overrides() if "rounds" not in text]
        found = case("benchmarks.promotion:attacked", overrides=[*overrides, *data], attack=one.attack, share=one.share)
        print(f"{one}: {found.get('failed') or found['er@10']}", file=sys.stderr, flush=True)
        if opts.full and "failed" not in found:
            RESULTS.mkdir(parents=True, exist_ok=True)
            about = {"overrides": one.overrides(), "share": one.share, **found}
            one.file.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
