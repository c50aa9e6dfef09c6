"""The ServerApp: rounds of one empty message to each of some nodes, each as quick as the runtime lets it be."""

from __future__ import annotations

import json
import time
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()

_POLL = 0.005


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Push, and pull until all have answered: first with quick polls, then as `send_and_receive` does it."""
    config = context.run_config
    out, rounds = Path(str(config["out"])), int(config["num-server-rounds"])
    nodes = list(grid.get_node_ids())
    while not nodes:
        time.sleep(0.1)
        nodes = list(grid.get_node_ids())
    asked = int(config["messages"]) or len(nodes)
    for way in str(config["ways"]).split():
        for number in range(rounds):
            # Others in each round, as a cohort is.
            start = number * asked % len(nodes)
            messages = [Message(RecordDict(), node, "train") for node in (nodes[start:] + nodes[:start])[:asked]]
            started = time.perf_counter()
            if way == "push_and_pull":
                waiting = set(grid.push_messages(messages))
                while waiting:
                    waiting -= {reply.metadata.reply_to_message_id for reply in grid.pull_messages(list(waiting))}
                    time.sleep(_POLL if waiting else 0.0)
            else:
                list(grid.send_and_receive(messages))
            line = {"way": way, "round": number, "seconds": time.perf_counter() - started}
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
