"""A catalogue of a million items through a warm-up, over TLS: seconds a round, and the memory of server and sites.

Two SuperNodes with twenty users each. The warm-up sends the whole table both ways, then it is frozen and sent once
more, and a low-rank correction travels. The table starts from random numbers: no text is read.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import options, write
from benchmarks.deployment import Sites, Usage
from benchmarks.rendering import measured_with, table

_PARTS = {"server": "superlink", "site": "site-0"}


def rendered(result: dict[str, Any]) -> str:
    """Rounds of a very large catalogue over the real transport."""
    figures, chosen = result["figures"], result["configuration"]
    rows = [
        [str(line["round"]), line["phase"], str(line["users"]), f"{line['seconds']:.0f}"]
        + [f"{line['bytes'][way] / line['users'] / 1e6:,.0f}" for way in ("up", "down")]
        for line in figures["rounds"]
    ]
    peak = figures["peak_bytes"]
    text = (
        f"\n{chosen['items']:,} items of {chosen['dim']} numbers, {chosen['sites']} sites, {chosen['users']} users. "
        f"The server's processes held {peak['server'] / 1e9:.1f} GB at most, those of a site "
        f"{peak['site'] / 1e9:.1f} GB.\n"
    )
    return (
        table(["round", "phase", "users", "s", "MB up, a user", "MB down"], rows)
        + text
        + measured_with(result).replace("; medians, with least and most", "")
    )


BLOCKS = {"large-catalogue": rendered}
"""What the documents show of a result, by the name of the block."""


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--folder", type=Path, help="where the federation lives (default: a temporary folder)")
        parser.add_argument("--port", type=int, default=46080)

    opts = options("large_catalogue", __doc__, arguments, more)
    items = 1_000_000 if opts.full else 1_000
    folder = opts.extra.folder or Path(tempfile.mkdtemp(prefix="fedrec-federation-"))
    data = f"dataset=synthetic dataset.n_items={items} dataset.n_users=40 dataset.interactions_per_user=20"
    overrides = ["base_table.start=random", "strategy.rounds=4", "strategy.warmup_rounds=2", "run_id=run"]
    overrides += ["evaluation.every=0", "federation.round_timeout=600.0", "federation.min_nodes=2"]
    sites = Sites(folder, opts.extra.port, data)
    watched = {name: Usage(sites, part) for name, part in _PARTS.items()}
    try:
        sites.must("start", "2")
        for usage in watched.values():
            usage.start()
        sites.must("run", *overrides)
    finally:
        for usage in watched.values():
            usage.ended.set()
        sites.call("stop")
    names = ("round", "phase", "users", "seconds", "bytes", "dropped_replies")
    figures = {
        "rounds": [{name: line[name] for name in names} for line in sites.metrics("run")],
        "peak_bytes": {name: max(usage.memory) for name, usage in watched.items()},
    }
    return write(opts, "large_catalogue", {"items": items, "sites": 2, "users": 40, "dim": 32}, figures)


if __name__ == "__main__":
    main()
