"""Runs with a model that writes titles, on a sample of users: kept, and shown as a table in docs/fellrec.md.

    python -m benchmarks.title_runs --sample 60 FROM TO      the interactions of some users of a table, drawn at random
    python -m benchmarks.title_runs --add NAME runs/<id>     keep a run, then write the table
    python -m benchmarks.title_runs [--check]                write the table, or exit 1 if the page has another one

What is kept of a run has what its models make of the titles of the test items, before training and after.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import documents
from benchmarks.results_table import RESULTS, ROOT, kept
from commands.kept_run import of_run
from fedrec.backbones.history import PlainHistory

PAGE, FOLDER = ROOT / "docs" / "fellrec.md", RESULTS / "titles"
_HEAD = (
    "| run | loss before | after | difference | validation NDCG@10 | test NDCG@10 | test HR@10 | best untrained "
    "baseline, NDCG@10 | ahead of it | bytes per user up | down | once |\n"
    "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n"
)


def sample(users: int, source: Path, to: Path) -> None:
    """Write the lines of some users of a comma-separated table whose first column is the user."""
    head, *lines = source.read_text(encoding="utf-8").splitlines()
    every = sorted({line.split(",")[0] for line in lines})
    chosen = set(np.random.default_rng(0).permutation(every)[:users].tolist())
    found = [head, *(line for line in lines if line.split(",")[0] in chosen)]
    to.write_text("\n".join(found) + "\n", encoding="utf-8")


def losses(run: Path) -> dict[str, float]:
    """The cross-entropy of the titles of the test items, in nats a token, by the model before training and after.

    Means over the users who have such an item, and the standard error of the mean difference.
    """
    torch.set_num_threads(1)
    source = of_run(run)
    histories, positives = source.node.users.held_out(np.arange(len(source.node.users)), "test")
    found = []
    for user in np.flatnonzero(positives >= 0).tolist():
        model = source.model_of(int(source.node.groups[user])).model
        trained = model.model.shared(model.trainable)
        untrained = {name: torch.zeros_like(tensor) for name, tensor in trained.items()}
        items = torch.from_numpy(histories.part(user, user + 1).items)
        history = PlainHistory(items, torch.zeros(len(items), model.model.embedding.dim))
        ahead, frozen, backbone = (
            torch.from_numpy(positives[[user]]),
            model.model.of_backbone(model.frozen),
            model.model.backbone,
        )
        with torch.no_grad():
            both = [backbone.losses(lora, {}, frozen, history, ahead, ahead >= 0) for lora in (untrained, trained)]
        found.append([float(loss) for loss in both])
    before, after = np.array(found).T
    error = float((after - before).std(ddof=1) / len(found) ** 0.5)
    return {"before": float(before.mean()), "after": float(after.mean()), "error": error, "users": len(found)}


def keep(name: str, run: Path) -> Path:
    """Keep a finished run, with what its models make of the test items' titles."""
    found: dict[str, Any] = {**kept(name, run), "losses": losses(run)}
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{'-'.join(''.join(c if c.isalnum() else ' ' for c in name.lower()).split())}.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return path


def table() -> str:
    """One line a run."""
    lines = []
    for path in sorted(FOLDER.glob("*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        summary, loss = run["summary"], run["losses"]
        best = max(means["ndcg@10"] for means in summary["baselines"].values())
        cells = [
            run["name"],
            f"{loss['before']:.3f}",
            f"{loss['after']:.3f}",
            f"{loss['after'] - loss['before']:+.3f} ± {loss['error']:.3f}",
            f"{summary['validation']['ndcg@10']:.3f}",
            f"{summary['test']['ndcg@10']:.3f}",
            f"{summary['test']['hr@10']:.3f}",
            f"{best:.3f}",
            f"{summary['lead']['difference']:+.3f} ± {summary['lead']['standard_error']:.3f}",
            *(f"{summary['bytes_per_user'][way]:,.0f}" for way in ("up", "down", "one_time")),
        ]
        lines.append(f"| {' | '.join(cells)} |\n")
    return f"\n{_HEAD}{''.join(lines)}\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out what the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.title_runs", description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--sample", nargs=3, metavar=("USERS", "FROM", "TO"))
    parser.add_argument("--add", nargs=2, metavar=("NAME", "RUN"))
    parsed = parser.parse_args(arguments)
    if parsed.sample:
        sample(int(parsed.sample[0]), Path(parsed.sample[1]), Path(parsed.sample[2]))
        return 0
    if parsed.add:
        keep(parsed.add[0], Path(parsed.add[1]))
    return documents.write(PAGE, {"titles": table()}, command="python -m benchmarks.title_runs", check=parsed.check)


if __name__ == "__main__":
    sys.exit(main())
