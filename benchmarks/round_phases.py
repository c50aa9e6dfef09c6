"""Where the time of a round goes: on the in-process grid and through Flower's simulation.

The parts are sample, encode, send (packing and unpacking records), read (histories), train, store (the users' private
tensors), decode, aggregate, write. What remains of a round's wall time through Flower, after the server's own parts and
those of its slowest worker, is the runtime's. Its floor, a round of empty messages, is measured in the same run.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import Options, case, ml_1m, options, spread, synthetic, table_overrides, write
from benchmarks.federation import simulation
from benchmarks.flower import rounds_of, run_app
from benchmarks.rendering import in_seconds, interval, number, or_failure, table

_EMPTY = Path(__file__).resolve().parent / "empty_flower_app"
_SMALL_USERS = 300


def rendered(result: dict[str, Any]) -> str:
    """The block of the document that shows a result."""
    figures = result["figures"]
    floor = figures["floor"]
    rows = [["empty round, quick polls", "-", interval(floor.get("push_and_pull")), "-"]]
    rows += [["empty round, `send_and_receive`", "-", interval(floor.get("send_and_receive")), "-"]]
    for entry in figures["simulation"]:
        users = f"{entry.get('users_per_round', 0):,}"
        rows.append(
            ["fedrec through Flower", users, or_failure(entry, "seconds"), interval(entry.get("updates_per_second"))]
        )
    for entry in figures["in_process"]:
        if "part_seconds" not in entry and "users_per_round" in entry:
            label = f"fedrec in one process, {entry['embedding']}"
            users = f"{entry['users_per_round']:,}"
            rows.append([label, users, interval(entry["seconds"]), interval(entry["updates_per_second"])])
    text = table(["", "users a round", "seconds a round", "client updates/s"], rows)
    ratios = ", ".join(f"{number(v)} at {int(n):,} users" for n, v in figures["ratios"].items())
    text += f"\nMedian round over the median empty round: {ratios}.\n\n"
    starts = [
        [n + 1, in_seconds(e, "superlink_seconds"), in_seconds(e, "first_round_seconds"), in_seconds(e, "run_seconds")]
        for n, e in enumerate(figures["starts"])
    ]
    head = ["start", "SuperLink up (s)", "`flwr run` to the first finished round (s)", "to the end of the run (s)"]
    text += table(head, starts)
    if (long := figures.get("long_run")) and "run_seconds" in long:
        text += (
            f"\n{long['rounds']:,} rounds of P-LoRA of {long['users_per_round']:,} users, validation every 50: "
            f"{long['run_seconds']:.0f} s from `flwr run` to the end; a round {interval(long['seconds'])} s, one with "
            f"validation {interval(long.get('seconds_with_validation'))} s.\n"
        )
    return text


BLOCKS = {"rounds": rendered}
"""What the documents show of a result, by the name of the block."""


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    opts = options(
        "round_phases", __doc__, arguments, lambda parser: parser.add_argument("--synthetic", action="store_true")
    )
    full = opts.full
    workers = max(1, os.cpu_count() or 1) if full else 1
    users = 604 if full else 60
    data = synthetic(opts.cache, _SMALL_USERS, 200, 12.0) if opts.extra.synthetic else ml_1m(opts.data, opts.cache)
    inside = [
        case(
            "benchmarks.federation:in_process",
            threads=1,
            data=data,
            embedding=embedding,
            users_per_round=users,
            rounds=20 if full else 2,
            nodes=workers,
            phases=phases,
        )
        for embedding in ("full", "lora")
        for phases in (False, True)
    ]
    floor = empty(workers, workers, 50 if full else 3)
    counts = (users, 2_416, 6_040) if full else (users,)
    through = [federation(opts, count, 40 if full else 4, workers) for count in counts]
    parts = federation(opts, users, 40 if full else 4, workers, phases=True)
    starts = [federation(opts, users, 3, workers) for _ in range(3 if full else 1)]
    figures: dict[str, Any] = {
        "in_process": inside,
        "floor": floor,
        "simulation": through,
        "simulation_parts": parts,
        "starts": starts,
        "ratios": _ratios(floor, through),
    }
    if full:
        figures["long_run"] = federation(opts, users, 1_000, workers, every=50, warm_up=20)
    configuration = {
        "data": "synthetic" if opts.extra.synthetic else "ml_1m",
        "embedding": "lora of rank 4 (P-LoRA) unless it says otherwise",
        "backbone": "fedmf",
        "dim": 32,
        "nodes": workers,
        "workers": workers,
    }
    return write(opts, "round_phases", configuration, figures)


def empty(
    nodes: int, workers: int, rounds: int, messages: int = 0, ways: str = "push_and_pull send_and_receive"
) -> dict[str, Any]:
    """Rounds of empty messages, to every node unless `messages` says to how many: the runtime's own floor."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rounds.jsonl"
        values = {"num-server-rounds": rounds, "out": str(out), "messages": messages, "ways": ways}
        found = {"nodes": nodes, "workers": workers, **run_app(_EMPTY, values, nodes, workers, watched=out)}
        if "failed" not in found:
            said, seconds = rounds_of(out, lambda line: line["way"]), rounds_of(out, lambda line: line["seconds"])
            for way in ways.split():
                mine = [value for name, value in zip(said, seconds, strict=True) if name == way]
                found[way] = spread(mine[1:])
        return found


def federation(
    opts: Options, users: int, rounds: int, workers: int, *, every: int = 0, warm_up: int = 0, phases: bool = False
) -> dict[str, Any]:
    """P-LoRA through Flower's simulation, as many nodes as workers."""
    if opts.extra.synthetic:
        everybody = _SMALL_USERS
        dataset = ["dataset=synthetic", f"dataset.n_users={everybody}", "dataset.n_items=200"]
    else:
        everybody, dataset = 6_040, table_overrides(opts.data)
    overrides = [
        *dataset,
        f"federation.fraction={min(1.0, users / everybody)!r}",
        f"strategy.warmup_rounds={warm_up}",
        f"evaluation.every={every}",
        "evaluation.baselines=false",
    ]
    return simulation(overrides, opts.cache, rounds, workers, workers, phases=phases)


def _ratios(floor: dict[str, Any], through: list[dict[str, Any]]) -> dict[str, float]:
    """Median round over the median of the floor, by users a round."""
    if "push_and_pull" not in floor:
        return {}
    least = floor["push_and_pull"]["median"]
    return {
        str(entry["users_per_round"]): entry["seconds"]["median"] / least for entry in through if "seconds" in entry
    }


if __name__ == "__main__":
    main()
