"""The ServerApp: FedAvg as it comes, with a stopwatch around each round."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from stock_app.task import Net

app = ServerApp()


class TimedFedAvg(FedAvg):
    """Writes a line for each round: its seconds, and how many clients answered."""

    out: Path
    started = 0.0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Start the watch."""
        self.started = time.perf_counter()
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Stop the watch."""
        answers = list(replies)
        found = super().aggregate_train(server_round, answers)
        line = {
            "round": server_round,
            "seconds": time.perf_counter() - self.started,
            "answers": sum(not reply.has_error() for reply in answers),
        }
        with self.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return found


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Wait for all nodes, then train."""
    config = context.run_config
    users, nodes = int(config["users-per-round"]), len(list(grid.get_node_ids()))
    while nodes < users:
        time.sleep(0.1)
        nodes = len(list(grid.get_node_ids()))
    strategy = TimedFedAvg(
        fraction_train=users / nodes,
        fraction_evaluate=0.0,
        min_train_nodes=users,
        min_evaluate_nodes=0,
        min_available_nodes=users,
    )
    strategy.out = Path(str(config["out"]))
    net = Net(int(config["items"]), int(config["dim"]))
    strategy.start(grid=grid, initial_arrays=ArrayRecord(net.state_dict()), num_rounds=int(config["num-server-rounds"]))
