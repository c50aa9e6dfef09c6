"""What a secure sum costs: seconds of a round beyond one of the same numbers without masks, and bytes of a node.

On the in-process grid, with a tenth of the nodes lost in every round after they have shared their secrets, where that
costs most. The two runs lose the same nodes and come to the same model, to the bit.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from flwr.app import Error, Message
from typing_extensions import override

from benchmarks.common import case, ml_1m, options, spread, synthetic, write
from benchmarks.federation import EnoughError, strategy_over
from benchmarks.rendering import interval, measured_with, table
from client_app.answers.app import app as client_app
from commands.local_grid import LocalGrid
from exchanges import records
from exchanges.records import unpack
from fedrec.core.tensors import content_digest

_STAGES = (records.ANNOUNCE, records.SHARE, records.TRAIN, records.UNMASK)


class LosingGrid(LocalGrid):
    """Loses a share of the nodes that are to train, others in every round, and adds up what crosses.

    Attributes:
        moved: Bytes of arrays up and down, by round, of all nodes; what is sent once is not among them.
    """

    def __init__(self, nodes: int, lost: float) -> None:
        super().__init__(client_app, nodes)
        self._lost, self._nodes = round(lost * nodes), nodes
        self.moved: dict[int, dict[str, int]] = defaultdict(lambda: {"up": 0, "down": 0})

    @override
    def answer(self, message: Message) -> Message:
        kind, content = message.metadata.message_type, unpack(message.content)
        if kind not in _STAGES:
            return super().answer(message)
        number = int(content.fields["round"])
        self.moved[number]["down"] += _bytes(message)
        gone = np.random.default_rng(number).permutation(self._nodes)[: self._lost]
        if kind == records.TRAIN and message.metadata.dst_node_id - min(self.get_node_ids()) in gone:
            return Message(Error(0, "lost"), reply_to=message)
        answer = super().answer(message)
        self.moved[number]["up"] += _bytes(answer)
        return answer


def _bytes(message: Message) -> int:
    arrays = unpack(message.content).arrays
    return sum(array.nbytes for name, array in arrays.items() if not name.startswith(records.FROZEN))


def rounds(
    data: dict[str, Any], aggregation: str, users: int, nodes: int, lost: float, rounds: int, bits: int, threads: int
) -> dict[str, Any]:
    """Processor and wall seconds of rounds after the first, bytes of a node in one, and a digest of the model."""
    torch.set_num_threads(threads)
    rules = [f"aggregation={aggregation}", f"aggregation.bits={bits}", "embedding.rank=4", "codec=int8"]
    strategy, watch, folder = strategy_over(data, "lora", users, rounds + 1, nodes, rules)
    grid, marks = LosingGrid(nodes, lost), [(0.0, 0.0)]
    note = watch.on_round

    def on_round(record: dict[str, Any]) -> None:
        marks.append((time.process_time(), time.perf_counter()))
        note(record)

    watch.on_round = on_round  # type: ignore[method-assign]
    started = time.perf_counter()
    try:
        with suppress(EnoughError):
            strategy.start(grid)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    steps = np.diff(np.array(marks[1:]), axis=0)
    numbers = sorted(grid.moved)[1:]
    model = next(iter(strategy.models.states.values())).trainable
    return {
        "cpu_seconds": spread(steps[:, 0].tolist()),
        "seconds": spread(steps[:, 1].tolist()),
        "whole_seconds": time.perf_counter() - started,
        "users_that_count": int(watch.records[-1]["users"]),
        "numbers": sum(tensor.numel() for tensor in model.values()),
        "up_per_node": statistics.mean(grid.moved[number]["up"] for number in numbers) / nodes,
        "down_per_node": statistics.mean(grid.moved[number]["down"] for number in numbers) / nodes,
        "model": content_digest(model),
    }


def compared(data: dict[str, Any], **about: Any) -> dict[str, Any]:
    """Rounds with masks, and the same without."""
    with_masks = case("benchmarks.secure_sums:rounds", threads=1, data=data, aggregation="secagg", **about)
    without = case("benchmarks.secure_sums:rounds", threads=1, data=data, aggregation="grid", **about)
    found = {"nodes": about["nodes"], "users": about["users"], "bits": about["bits"], "lost": about["lost"]}
    found |= {"masked": with_masks, "plain": without}
    if "model" in with_masks and "model" in without:
        found["same_model"] = with_masks.pop("model") == without.pop("model")
        found["cpu_seconds_beyond"] = with_masks["cpu_seconds"]["median"] - without["cpu_seconds"]["median"]
    return found


def rendered(result: dict[str, Any]) -> str:
    """The block of the document that shows a result."""
    head = ["nodes", "users", "numbers", "plain round, CPU s", "with masks, CPU s", "beyond, s", "KB up", "KB down"]
    rows = []
    for entry in result["figures"]["sizes"]:
        masked, plain = entry["masked"], entry["plain"]
        rows.append(
            [
                f"{entry['nodes']:,}",
                f"{entry['users']:,}",
                f"{masked['numbers']:,}",
                interval(plain["cpu_seconds"]),
                interval(masked["cpu_seconds"]),
                f"{entry['cpu_seconds_beyond']:.2f}",
                f"{masked['up_per_node'] / 1000:.1f}",
                f"{masked['down_per_node'] / 1000:.1f}",
            ]
        )
    same = all(entry["same_model"] for entry in result["figures"]["sizes"])
    text = f"\nThe models with masks and without are {'' if same else 'not '}the same to the bit.\n"
    return table(head, rows) + text + measured_with(result)


BLOCKS = {"secure-sums": rendered}
"""What the documents show of a result, by the name of the block."""


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    opts = options(
        "secure_sums", __doc__, arguments, lambda parser: parser.add_argument("--synthetic", action="store_true")
    )
    some = synthetic(opts.cache, 604, 3_706, 60.0) if opts.full else synthetic(opts.cache, 60, 100, 8.0)
    most = some if opts.extra.synthetic or not opts.full else ml_1m(opts.data, opts.cache)
    count = 3 if opts.full else 2
    if opts.full:
        sizes = [
            compared(most, users=604, nodes=100, lost=0.1, rounds=count, bits=9),
            compared(some, users=604, nodes=604, lost=0.1, rounds=count, bits=9),
        ]
    else:
        sizes = [compared(some, users=60, nodes=10, lost=0.1, rounds=count, bits=9)]
    configuration = {
        "data": "MovieLens 1M, 604 users a round on 100 nodes; 604 synthetic users, one a node",
        "embedding": "lora of rank 4 (P-LoRA), int8 down",
        "lost": "after sharing",
    }
    return write(opts, "secure_sums", configuration, {"sizes": sizes})


if __name__ == "__main__":
    main()
