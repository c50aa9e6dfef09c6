"""A device's message, from the start of its process to its end: one user of MovieLens 1M with 200 interactions.

In a deployment Flower starts a process for every message. Here each repeat starts Python anew, imports what Flower's
own client process imports and then the client, handles a train message as the server sent it in a run, and ends:
seconds of one core, wall seconds and peak memory. Fetching the message and waiting for the next poll are no part of it.
"""

from __future__ import annotations

import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import ROOT, options, spread, write
from benchmarks.rendering import interval, measured_with, table

_INTERACTIONS = 200
_CHILD = """
import json, sys, time
stages = {"start": time.process_time()}
import flwr.supernode.cli.flwr_clientapp
stages["flower"] = time.process_time()
from client_app.entry import app, real_app
real_app()
stages["client"] = time.process_time()
import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from exchanges.records import pack
folder = sys.argv[1]
about = json.load(open(folder + "/message.json"))
arrays = dict(np.load(folder + "/message.npz"))
TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1
message = Message(pack(about["fields"], arrays=arrays), 2, about["type"])
message.metadata.__dict__["_message_id"] = "1"
state = RecordDict({"setup": ConfigRecord({"json": about["setup"]})})
context = Context(run_id=1, node_id=2, node_config=about["node_config"], state=state, run_config={})
reply = app(message, context)
stages["message"] = time.process_time()
assert not reply.has_error(), reply.error
assert "update" in reply.content["arrays"], dict(reply.content["fields"])
peak = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(json.dumps({"stages": stages, "peak_bytes": peak}))
"""
_PHASES = {"warmup": "the whole table", "peft": "lora of rank 4 over the frozen table"}


def record(data: Path, folder: Path) -> dict[str, int]:
    """One run of two rounds with the user's device alone; each round's message is kept in `folder`/<phase>."""
    from client_app.answers.app import app
    from commands.local_grid import LocalGrid
    from exchanges.records import unpack
    from fedrec.config.compose import compose
    from fedrec.config.paths import settle
    from server_app.run import run

    source = data / "ml-1m"
    with (source / "interactions.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    column = header.index("user_id")
    counts: dict[str, int] = {}
    for row in rows:
        counts[row[column]] = counts.get(row[column], 0) + 1
    chosen = min(counts, key=lambda user: abs(counts[user] - _INTERACTIONS))
    with (folder / "mine.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *(row for row in rows if row[column] == chosen)])
    site = {"interactions": str(folder / "mine.csv"), "state-dir": str(folder / "state")}

    class Recording(LocalGrid):
        def answer(self, message: Any) -> Any:
            content = unpack(message.content)
            if message.metadata.message_type == "query.enroll":
                self.setup = content.fields["setup"]
            elif message.metadata.message_type == "train":
                kept = folder / list(_PHASES)[int(content.fields["phase"])]
                kept.mkdir()
                arrays = {name: array for name, array in content.arrays.items() if not name.startswith("frozen.")}
                np.savez(kept / "message.npz", **arrays)
                about = {"type": "train", "fields": dict(content.fields), "setup": self.setup, "node_config": site}
                (kept / "message.json").write_text(json.dumps(about))
            return super().answer(message)

    overrides = ["runtime=deployment", "dataset=table", f"dataset.item_table={source}/items.csv", "simulation.nodes=1"]
    overrides += ["base_table.start=random", "strategy.rounds=2", "strategy.warmup_rounds=1", "evaluation.every=0"]
    overrides += [f"runs_dir={folder}/runs", f"cache_dir={folder}/cache", "run_id=r"]
    run(settle(compose(overrides, base=None), None), overrides, Recording(app, [site]))
    setup = json.loads(json.loads((folder / "peft" / "message.json").read_text())["setup"])
    return {"interactions": counts[chosen], "items": setup["n_items"]}


def message(folder: Path) -> dict[str, float]:
    """One process that handles one message: CPU seconds by stage and in all, wall seconds, and the peak of memory."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(folder)], env=env, capture_output=True, text=True, check=False, cwd=folder
    )
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"a client failed: {done.stderr[-2000:]}")
    told = json.loads(done.stdout.splitlines()[-1])
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    ends = [0.0, *told["stages"].values(), cpu]
    stages = [end - begin for begin, end in pairwise(ends)]
    names = [f"cpu_{name}" for name in (*told["stages"], "end")]
    return {"cpu": cpu, "wall": wall, **dict(zip(names, stages, strict=True)), "peak_bytes": told["peak_bytes"]}


def rendered(result: dict[str, Any]) -> str:
    """A device's message: seconds of one core by stage, and memory."""
    phases = result["figures"]
    stages = [name for name in phases["peft"]["seconds"] if name not in ("cpu", "wall")]
    rows = []
    for figures in phases.values():
        seconds = [interval(figures["seconds"][name]) for name in ("cpu", *stages, "wall")]
        rows.append([figures["trains"], *seconds, f"{figures['peak_bytes']['median'] / 1e6:.0f} MB"])
    named = [name.removeprefix("cpu_") for name in stages]
    head = ["trains", "CPU, s", *named, "wall, s", "memory"]
    return table(head, rows) + measured_with(result)


BLOCKS = {"light-client": rendered}
"""What the documents show of a result, by the name of the block."""


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    opts = options("light_client", __doc__, arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        configuration = {"data": "ml_1m", "backbone": "fedmf", "dim": 32, **record(opts.data, folder)}
        figures = {}
        for phase, what in _PHASES.items():
            repeats = [message(folder / phase) for _ in range(7 if opts.full else 1)]
            measured = {name: spread([repeat[name] for repeat in repeats]) for name in repeats[0]}
            figures[phase] = {"trains": what, "seconds": {k: v for k, v in measured.items() if k != "peak_bytes"}}
            figures[phase]["peak_bytes"] = measured["peak_bytes"]
    return write(opts, "light_client", configuration, figures)


if __name__ == "__main__":
    main()
