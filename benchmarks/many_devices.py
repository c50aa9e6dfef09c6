"""What devices of one user each cost a server, by how many there are: the parts of it that grow with their number.

The directory of users and the byte meter, with a node for every user; the choice of a cohort, and who lives where; a
node that leaves; and the replies of a cohort, decoded, checked and added up. Seconds are those of the processor, with
one thread; bytes are what the process has grown by. What the runtime does with a call is not in it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import RESULTS, case, options, spread, write
from benchmarks.rendering import interval, measured_with, number, table
from federation.aggregation import UpdateFold
from federation.cohorts.base import Roots
from federation.directory import Directory
from federation.meter import Meter
from fedrec.config.describe import load_member
from fedrec.core import registry
from fedrec.core.rng import counter_bits
from fedrec.core.tensors import TableSpec, TensorSpec
from fedrec.wire.packet import Kind, PacketFormat
from fedrec.wire.protocol import UPDATE_SCALARS

COHORT = 5_000
"""Users of a round."""

ON_PAPER = 100_000_000
"""Devices of what is worked out and not measured."""

POLL_SECONDS = 3.0
"""How often a SuperNode of Flower asks whether there is a message for it."""

_SPEC = {"a": TableSpec((3_706, 4)), "b": TensorSpec((4, 32))}
"""P-LoRA of rank 4 on the films of MovieLens 1M."""


def _resident() -> int:
    """Bytes of memory that the process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _seconds(work: Callable[[], Any], repeats: int) -> list[float]:
    found = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        found.append(time.process_time() - started)
    return found


def known(devices: int, threads: int) -> dict[str, Any]:
    """A directory and a meter of so many devices: bytes and seconds for each of them, and seconds of a round."""
    torch.set_num_threads(threads)
    keys = counter_bits(0, np.arange(devices))
    alone = keys.reshape(-1, 1)
    directory, meter, before = Directory(), Meter(["warmup", "peft"]), _resident()

    def join() -> None:
        for node in range(devices):
            directory.join(node, alone[node])
        meter.grow(devices, 0)

    joining = _seconds(join, 1)
    held = _resident() - before
    sampling = registry.cohorts.get("fixed")(load_member("cohort", "fixed"))
    share = min(1.0, COHORT / devices)
    chosen = directory.cohort(sampling, 1, share, Roots(0, 0))
    here = iter(directory.nodes)
    return {
        "devices": devices,
        "cohort": len(chosen),
        "bytes_a_device": held / devices,
        "join_seconds": joining[0] / devices,
        "choose_seconds": spread(_seconds(lambda: directory.cohort(sampling, 1, share, Roots(0, 0)), 5)),
        "place_seconds": spread(_seconds(lambda: directory.shares(chosen), 5)),
        "leave_seconds": spread(_seconds(lambda: directory.leave(next(here)), 5)),
    }


def replies(count: int, threads: int) -> dict[str, Any]:
    """So many replies of one user each, in `int8`: bytes of one, and seconds to decode, check and add it up."""
    torch.set_num_threads(threads)
    codec = registry.codecs.get("int8")(load_member("codec", "int8"))
    form = PacketFormat(Kind.UPDATE, _SPEC, codec, len(UPDATE_SCALARS))
    drawn = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(entry.shape, generator=drawn) for name, entry in _SPEC.items()}
    packet = form.encode(0, 1, tensors, [1.0, 1.0, 10.0, 0.5, *[0.0] * (len(UPDATE_SCALARS) - 4)])
    fold = UpdateFold(_SPEC, count, 1, 1_000.0)
    seconds = _seconds(lambda: fold.add(form.decode(packet, phase=0, round=1), 1), count)
    return {"replies": count, "bytes": len(packet), "seconds": spread(seconds)}


def rendered(result: dict[str, Any]) -> str:
    """What was measured, by the number of devices."""
    figures = result["figures"]
    rows = [
        [
            f"{entry['devices']:,}",
            number(entry["bytes_a_device"]),
            number(1e6 * entry["join_seconds"]),
            *(interval(_scaled(entry[name], 1e3)) for name in ("choose_seconds", "place_seconds", "leave_seconds")),
        ]
        for entry in figures["known"]
    ]
    one = figures["replies"]
    head = ["devices", "bytes each", "µs to join, each", "ms to choose", "ms to place", "ms for one to leave"]
    text = f"\nA reply of {one['bytes']:,} bytes: {interval(_scaled(one['seconds'], 1e3))} ms.\n"
    return table(head, rows) + text + measured_with(result)


def on_paper(result: dict[str, Any]) -> str:
    """A hundred million devices, from the largest number that was measured, and the runtime's own calls."""
    figures = result["figures"]
    most, one = figures["known"][-1], figures["replies"]
    times = ON_PAPER / most["devices"]
    calls = _calls_a_second()
    polls = ON_PAPER / POLL_SECONDS
    rows = [
        ["who there is: memory", f"{ON_PAPER * most['bytes_a_device'] / 1e9:,.0f} GB"],
        ["everybody joins once, the directory alone", f"{ON_PAPER * most['join_seconds'] / 60:,.0f} min"],
        [f"{COHORT:,} are chosen", f"{times * most['choose_seconds']['median']:,.1f} s a round"],
        ["where they live", f"{most['place_seconds']['median']:.2g} s a round"],
        [f"{COHORT:,} replies are added up", f"{COHORT * one['seconds']['median']:,.1f} s a round"],
        [f"{COHORT:,} replies come in", f"{COHORT * one['bytes'] / 1e6:,.0f} MB a round"],
        [f"{COHORT:,} calls of the runtime", f"{COHORT / calls:,.0f} s a round"],
        [f"polls, one in {POLL_SECONDS:.0f} s each", f"{polls / 1e6:,.0f} million a second"],
    ]
    return table(["of 100,000,000 devices", "on two cores"], rows) + (
        f"\nThe runtime makes {calls:,.0f} calls a second here, of apps that do nothing "
        "([simulation.md](simulation.md#one-user-per-supernode)).\n"
    )


def _scaled(values: dict[str, float], by: float) -> dict[str, float]:
    return {name: values[name] * by for name in ("min", "median", "max")}


def _calls_a_second() -> float:
    """Calls a second that the runtime manages with apps that do nothing, one user a node."""
    sizes = json.loads((RESULTS / "one_user_per_node.json").read_text(encoding="utf-8"))["figures"]["sizes"]
    return float(max(size["empty_everybody"]["calls_per_second"]["median"] for size in sizes))


BLOCKS = {"many-devices": rendered, "many-devices-on-paper": on_paper}
"""What the documents show of a result, by the name of the block."""


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    opts = options("many_devices", __doc__, arguments)
    sizes, count = ((10_000, 100_000, 1_000_000), 200) if opts.full else ((100, 200), 3)
    figures = {
        "known": [case("benchmarks.many_devices:known", devices=devices, threads=1) for devices in sizes],
        "replies": case("benchmarks.many_devices:replies", count=count, threads=1),
    }
    return write(opts, "many_devices", {"cohort": COHORT, "model": "P-LoRA of rank 4, int8"}, figures)


if __name__ == "__main__":
    main()
