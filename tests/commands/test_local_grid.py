"""The in-process grid does what the runtime does, as far as an app can see."""

from __future__ import annotations

from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from commands.local_grid import LocalGrid

app = ClientApp()


@app.query("count")
def count(message: Message, context: Context) -> Message:
    before = context.state.get("n")
    n = int(before["n"]) + 1 if isinstance(before, ConfigRecord) else 1  # type: ignore[arg-type]
    context.state["n"] = ConfigRecord({"n": n})
    config: dict[str, Any] = {"n": n, "partition": context.node_config["partition-id"]}
    return Message(RecordDict({"config": ConfigRecord(config)}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    if context.node_config["partition-id"] == 1:
        raise ValueError("line one\nthe disk is full")
    return Message(message.content, reply_to=message)


def answered(grid: LocalGrid, messages: list[Message]) -> list[tuple[Message, Message]]:
    """Each message with the reply to it."""
    sent = dict(zip(grid.push_messages(messages), messages, strict=True))
    return [(sent[reply.metadata.reply_to_message_id], reply) for reply in grid.pull_messages(list(sent))]


def ask(grid: LocalGrid, nodes: list[int], kind: str = "query.count") -> dict[int, Message]:
    messages = [Message(RecordDict({"config": ConfigRecord({"to": node})}), node, kind) for node in nodes]
    return {sent.metadata.dst_node_id: reply for sent, reply in answered(grid, messages)}


def config(reply: Message) -> dict[str, Any]:
    return dict(reply.content.config_records["config"])


def test_every_node_has_its_partition_and_its_own_state() -> None:
    grid = LocalGrid(app, 3)
    nodes = list(grid.get_node_ids())
    assert len(set(nodes)) == 3
    assert sorted(config(reply)["partition"] for reply in ask(grid, nodes).values()) == [0, 1, 2]
    ask(grid, nodes[:1])
    assert [config(reply)["n"] for reply in ask(grid, nodes).values()] == [3, 2, 2]


def test_a_reply_answers_its_message() -> None:
    grid = LocalGrid(app, 4)
    nodes = list(grid.get_node_ids())
    replies = ask(grid, [nodes[2], nodes[0]], "train")
    assert {node: config(reply)["to"] for node, reply in replies.items()} == {nodes[2]: nodes[2], nodes[0]: nodes[0]}
    assert replies[nodes[0]].metadata.src_node_id == nodes[0]


def test_a_client_that_raises_gives_an_error_reply_and_the_others_answer() -> None:
    grid = LocalGrid(app, 3)
    nodes = list(grid.get_node_ids())
    replies = ask(grid, nodes, "train")
    assert [reply.has_error() for reply in replies.values()] == [False, True, False]
    error = replies[nodes[1]].error
    assert error.code == 2
    assert error.reason == "ValueError: line one\nthe disk is full"


def test_an_unknown_kind_of_message_is_an_error_reply() -> None:
    grid = LocalGrid(app, 1)
    assert all(reply.has_error() for reply in ask(grid, list(grid.get_node_ids()), "query.nothing").values())


def test_a_reply_is_pulled_once_and_nothing_is_kept() -> None:
    grid = LocalGrid(app, 1)
    ids = list(grid.push_messages([Message(RecordDict(), node, "query.count") for node in grid.get_node_ids()]))
    assert len(list(grid.pull_messages([*ids, "another"]))) == 1
    assert list(grid.pull_messages(ids)) == []
    assert not grid._replies


def test_ids_never_repeat() -> None:
    grid = LocalGrid(app, 2)
    ids = [
        name
        for _ in range(5)
        for name in grid.push_messages([Message(RecordDict(), node, "query.count") for node in grid.get_node_ids()])
    ]
    assert len(set(ids)) == 10


def test_what_else_an_app_may_call() -> None:
    grid = LocalGrid(app, 2)
    message = grid.create_message(RecordDict(), "query.count", next(iter(grid.get_node_ids())), "group")
    assert message.metadata.group_id == "group"
    assert len(list(grid.send_and_receive([message]))) == 1
    assert grid.run.run_id == message.metadata.run_id


@pytest.mark.parametrize("nodes", [1, 50])
def test_any_number_of_nodes(nodes: int) -> None:
    grid = LocalGrid(app, nodes)
    assert len(ask(grid, list(grid.get_node_ids()))) == nodes
