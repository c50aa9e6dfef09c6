"""How much of a model of its own serves a group, beside the pooled one, if each group's own validation chooses.

    python -m benchmarks.own_share POOLED LOCAL NAME   keep what two runs of one seed and one grouping give together

Two models are trained for each group: that of `strategy.mixing=pooled`, and its own, of `strategy.mixing=local`. A
device would get both, and take `(1 - share) pooled + share own` of everything that is trained. Of each share the sums
of the validation's metrics would cross, and no more. The two runs are read from their folders, and nothing is trained
anew. The page is made by `python -m benchmarks.groups`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paired_groups import Ahead, Gains, as_sent, brought, of_worst, over_all, over_groups
from benchmarks.results_table import RESULTS, ROOT
from client_app.training.engine import GlobalModel
from commands.kept_run import of_run

FOLDER = RESULTS / "groups" / "own-share"
SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)


def mixed(pooled: GlobalModel, own: GlobalModel, share: float) -> GlobalModel:
    """The models' mean, in which the second has this weight."""
    trained = {name: tensor + share * (own.trainable[name] - tensor) for name, tensor in pooled.trainable.items()}
    return GlobalModel(pooled.model, trained, pooled.frozen)


def measured(pooled: Path, local: Path) -> dict[str, Any]:
    """Of each group the validation by share, the best share there (of equal ones the smallest), and the test."""
    sources = of_run(pooled), of_run(local)
    node = sources[0].node
    slots = node.users.evaluated("test")
    groups = node.groups[slots]
    if not np.array_equal(groups, sources[1].node.groups[slots]):
        raise SystemExit(f"{pooled} and {local} have other groups: give runs of one grouping and seed")
    found = np.zeros((2, len(slots)))
    curves = {}
    for group in np.unique(groups).tolist():
        received = [source.model_of(group) for source in sources]
        pair = [as_sent(source.node, given) for source, given in zip(sources, received, strict=True)]
        mine, round = groups == group, received[0].round
        models = {share: mixed(*pair, share) for share in SHARES}
        by_share = {
            share: float(brought(node, model, round, slots[mine], "validation").mean())
            for share, model in models.items()
        }
        best = max(by_share.values())
        share = min(each for each, value in by_share.items() if value == best)
        for row, each in enumerate((0.0, share)):
            found[row, mine] = brought(node, models[each], round, slots[mine], "test")
        curves[str(group)] = {"users": int(mine.sum()), "validation": by_share, "share": share}
    before, after = (Gains(each, groups) for each in found)
    ahead = {"all": over_all(after, before), "mean": over_groups(after, before), "worst": of_worst(after, before)}
    return {"groups": curves, "pooled": _summed(before), "chosen": _summed(after), "ahead": _named(ahead)}


def _summed(found: Gains) -> dict[str, float]:
    each = list(found.by_group.values())
    return {"all": float(found.ndcg.mean()), "mean": float(np.mean(each)), "worst": min(each)}


def _named(found: dict[str, Ahead]) -> dict[str, dict[str, float]]:
    return {name: ahead._asdict() for name, ahead in found.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out what the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.own_share", description="A share of its own for a group."
    )
    parser.add_argument("pooled", type=Path, help="the folder of a run with strategy.mixing=pooled")
    parser.add_argument("local", type=Path, help="that of the same run with strategy.mixing=local")
    parser.add_argument("name", help="DATA-GROUPING-SEED")
    chosen = parser.parse_args(arguments)
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{chosen.name}.json"
    path.write_text(json.dumps(measured(chosen.pooled, chosen.local), indent=2) + "\n", encoding="utf-8")
    print(f"kept {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
