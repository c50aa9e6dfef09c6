"""What sums over many users tell of one user's items, beyond what is popular: `fedrec audit recovery --of sums`.

    python -m benchmarks.sum_recovery --sizes full    measure, and keep each run
    python -m benchmarks.sum_recovery --page          write the kept figures into docs/privacy.md
    python -m benchmarks.sum_recovery --check         exit 1 if the page has other figures

MovieLens 1M, 400 users audited; a file for each run in `benchmarks/results/privacy/sums`. Runs that are kept already
are not done again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import documents, rendering
from benchmarks.common import ROOT, case, options, table_overrides

RESULTS = ROOT / "benchmarks" / "results" / "privacy" / "sums"
PAGE = ROOT / "docs" / "privacy.md"
USERS = 400
_TENTH = ["experiment=central_gaussian", "federation.fraction=0.1", "strategy.rounds=20"]
_ALL = ["experiment=central_gaussian", "strategy.rounds=5"]
_SHARES = ["privacy=distributed_gaussian", "privacy.drawn=sum"]
MODELS: Mapping[str, Sequence[str]] = {
    "20 sums over 604 users": [*_TENTH, "privacy=none"],
    "20 sums over 604 users, epsilon 8": [*_TENTH, "privacy.epsilon=8"],
    "20 sums over 604 users, epsilon 2": [*_TENTH, "privacy.epsilon=2"],
    "20 sums over 604 users, epsilon 8 in shares of devices": [*_TENTH, *_SHARES, "privacy.epsilon=8"],
    "5 sums over all 6,040 users": [*_ALL, "privacy=none"],
    "5 sums over all 6,040 users, epsilon 8": [*_ALL, "privacy.epsilon=8"],
}
"""What is set for each line of the page."""


def kept_as(model: str) -> Path:
    """Where a run is kept."""
    return RESULTS / f"{'-'.join(model.replace(',', '').lower().split())}.json"


def audited(overrides: list[str], users: int) -> dict[str, Any]:
    """One run, without its folder."""
    from rich.console import Console

    from commands.audit.sums import recovery_from_sums
    from fedrec.config.compose import compose
    from fedrec.config.paths import settle

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="sum-recovery-") as folder:
        texts = [*overrides, f"runs_dir={folder}/runs", f"cache_dir={tempfile.gettempdir()}/fedrec-benchmarks/cache"]
        quiet = Console(stderr=True, quiet=True)
        found = recovery_from_sums(settle(compose(texts, base=None), None), texts, users, console=quiet)
    del found["run"]
    return found


def shown(kept: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each run: what the attacks reach for users' whole histories, and for their last ten items."""
    what = ("popularity alone", "sums alone", "both", "gain of both over popularity")
    head = ["run", "epsilon by the account"]
    head += [f"{which}: {each}" for which in ("all items, AUC", "last 10") for each in what]
    rows = []
    for model in MODELS:
        found = kept[model]
        cells = [model, "none" if found["account"] is None else f"{found['account']:.2f}"]
        for name in ("history", "last"):
            figures = found[name]
            low, high = figures["interval"]
            cells += [f"{figures[each]:.3f}" for each in ("popularity", "sums", "both")]
            cells += [f"{figures['gain']:+.4f} ({low:+.4f} to {high:+.4f})"]
        rows.append(cells)
    return f"\n{rendering.table(head, rows)}\n"


def who(kept: Mapping[str, Mapping[str, Any]]) -> str:
    """What each onlooker learns, without protection and with it, in one figure each of those that are kept."""
    lone = json.loads((RESULTS.parent / "item_recovery.json").read_text(encoding="utf-8"))["figures"]["runs"]
    one = next(entry for entry in lone if entry["name"] == "fast, full, int8")
    plain, noised = "20 sums over 604 users", "20 sums over 604 users, epsilon 8 in shares of devices"
    adds = "of the last 10 items the sums add {:+.3f} to the AUC of popularity, {:.3f}"

    def of_sums(model: str) -> str:
        return adds.format(kept[model]["last"]["gain"], kept[model]["last"]["popularity"])

    def canaries(model: str, look: str) -> str:
        run = json.loads((RESULTS.parent / "membership" / f"{model}-canaries.json").read_text(encoding="utf-8"))
        noise = "central noise, " if run["account"] else ""
        return f"who took part, of made-up users: {noise}AUC {run[look]['auc']:.2f}"

    without, with_noise = "full-everybody-in-20-rounds", "the-same-epsilon-8"
    rows = [
        [
            "the server, which follows the protocol",
            f"a lone user's update: {one['one_update']['last_precision']:.2f} of the last 10 items named",
            of_sums(plain),
            of_sums(noised),
        ],
        [
            "another client, or whoever has all models",
            *[canaries(without, "all_models")] * 2,
            canaries(with_noise, "all_models"),
        ],
        ["an outsider with the last model", *[canaries(without, "last_model")] * 2, canaries(with_noise, "last_model")],
    ]
    head = [
        "who looks",
        "without protection",
        "with `aggregation=secagg`",
        "with noise for epsilon 8 on the sum as well",
    ]
    return f"\n{rendering.table(head, rows)}\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out what the command line asks for; the exit status."""

    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--page", action="store_true", help="write the kept figures into docs/privacy.md")
        parser.add_argument("--check", action="store_true", help="exit 1 if docs/privacy.md has other figures")

    opts = options("sum_recovery", __doc__, arguments, more)
    if opts.extra.page or opts.extra.check:
        kept = {model: json.loads(kept_as(model).read_text(encoding="utf-8")) for model in MODELS}
        command = "python -m benchmarks.sum_recovery --page"
        blocks = {"sums": shown(kept), "who": who(kept)}
        return documents.write(PAGE, blocks, command=command, check=opts.extra.check)
    data = [*table_overrides(opts.data), "dataset.text_columns=[title,genres]"] if opts.full else ["dataset.n_users=60"]
    for model in MODELS if opts.full else list(MODELS)[:1]:
        if opts.full and kept_as(model).is_file():
            continue
        overrides = [*MODELS[model], *data, *([] if opts.full else ["strategy.rounds=2"])]
        found = case("benchmarks.sum_recovery:audited", overrides=overrides, users=USERS if opts.full else 20)
        print(f"{model}: {found.get('failed') or found['history']}", file=sys.stderr, flush=True)
        if opts.full and "failed" not in found:
            RESULTS.mkdir(parents=True, exist_ok=True)
            kept_as(model).write_text(json.dumps({"overrides": MODELS[model], **found}, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
