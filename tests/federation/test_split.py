"""Whole runs whose language model is split: as unsplit ones, on any nodes, and with nodes that fail between stages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from flwr.app import Context, Message

from client_app.answers.app import app as honest
from client_app.homes.policy import EXCHANGES, Policy
from commands.describe import describe
from commands.recommend import recommend
from exchanges import records
from exchanges.records import pack, ungrouped, unpack
from federation.directory import Share
from federation.split.ranking import parts_of
from fedrec.config.compose import compose
from fedrec.config.describe import from_dict
from fedrec.core.errors import ConfigError, FederationError, PacketError, RoundError
from fedrec.language.models import register
from fedrec.testing.language import small_run, tiny
from fedrec.wire.crossing import crossed, crossing, crossing_format
from fedrec.wire.packet import Packet

Federate = Callable[..., Any]


@pytest.fixture
def chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Overrides of a small run with a random encoder."""
    monkeypatch.setenv("FEDREC_HOME", str(tmp_path / "home"))
    model = register(tiny("bert", tmp_path / "model", 8).folder)
    return small_run(model, "embedding=lora", "optim.server.eps=1.0e-2", "federation.fraction=0.6", "engine=oracle")


def must_equal(one: Any, other: Any) -> None:
    mine, theirs = one.checkpoint(), other.checkpoint()
    trained = [name for name in mine if name.startswith(("trainable.", "optimiser."))]
    assert {name for name in theirs if name.startswith(("trainable.", "optimiser."))} == set(trained)
    for name in trained:
        torch.testing.assert_close(
            mine[name], theirs[name], atol=1e-6, rtol=1e-6, msg=lambda text, name=name: name + text
        )
    for split in ("validation", "test"):
        here, there = ({k: v for k, v in run.summary[split].items() if k != "cold_users"} for run in (one, other))
        assert here == pytest.approx(there, abs=1e-6)


def failing(kind: str, partition: int) -> Callable[[Message, Context], Message]:
    """A client that is lost at one kind of message on one node, in the first round."""

    def client(message: Message, context: Context) -> Message:
        here = context.node_config["partition-id"] == partition and message.metadata.message_type == kind
        if here and unpack(message.content).fields["round"] == 1 and "splits" not in unpack(message.content).fields:
            raise RuntimeError("the battery is empty")
        return honest(message, context)

    return client


@pytest.mark.parametrize("first", [0, 1])
def test_a_split_run_is_the_unsplit_one_on_any_nodes(federate: Federate, chosen: list[str], first: int) -> None:
    whole = federate(*chosen, nodes=2)
    one = federate(*chosen, f"backbone.split={first}", nodes=1)
    must_equal(one, whole)
    assert one.summary["test"]["cold_users"] == whole.summary["test"]["cold_users"], "who has trained is known"
    assert one.metrics[-1]["loss"] == pytest.approx(whole.metrics[-1]["loss"], abs=1e-6)
    for nodes in (2, 7):
        federate(*chosen, f"backbone.split={first}", nodes=nodes).must_equal(one)
    middle = [
        name
        for name in one.checkpoint()
        if name.startswith(("trainable.backbone.layer.1.", "trainable.backbone.layer.2."))
    ]
    assert middle
    for _, name, packet in one.grid.packets((*one.grid.sent, *one.grid.received), ""):
        for trained in middle:
            assert one.checkpoint()[trained].numpy().tobytes() not in packet, (
                name,
                "the middle never leaves the server",
            )


def test_what_is_moved_is_what_was_described(federate: Federate, chosen: list[str]) -> None:
    outcome = federate(*chosen, "federation.fraction=1.0", "backbone.split=1", nodes=2)
    found = describe(from_dict(yaml.safe_load((outcome.folder / "config.yaml").read_text())), None)
    (phase,), moved = found.phases, outcome.summary["bytes_per_user"]
    assert (moved["up"], moved["down"], moved["one_time"]) == (found.run.up, found.run.down, found.run.one_time)
    assert moved["crossing"] == 2 * phase.crossing
    boundaries, numbers = 4, 24 * 8
    assert phase.crossing == pytest.approx(boundaries * numbers * 4, abs=boundaries * 60), "and little beside them"
    held = {row.tensor: row.held_by for row in phase.tensors}
    assert {held[name] for name in held if ".layer.1." in name or ".layer.2." in name} == {"server"}


@pytest.mark.parametrize("grouping", ["one", "key"])
def test_a_node_that_is_lost_between_the_stages_counts_for_nothing(
    federate: Federate, chosen: list[str], grouping: str
) -> None:
    if grouping == "key":
        chosen = [*chosen, "grouping=key", "grouping.groups=2"]
    given = [*chosen, "backbone.split=1", "federation.fraction=1.0", "strategy.rounds=1"]
    lost = [federate(*given, nodes=3, client=failing(kind, 1)) for kind in ("query.read", "query.judge", "train")]
    whole = federate(*given, nodes=3)
    for one in lost:
        assert one.metrics[0]["dropped_replies"] == {"failed": 1}
        assert 0 < one.metrics[0]["users"] < whole.metrics[0]["users"]
        must_equal(one, lost[0])
    middle = "trainable.backbone.layer.1.attention.self.query.B"
    assert not any(
        torch.equal(tensor, lost[0].checkpoint()[name])
        for name, tensor in whole.checkpoint().items()
        if name.endswith(middle.removeprefix("trainable"))
    )


@pytest.mark.parametrize("first", [0, 1])
def test_a_round_of_too_few_users_failed_by_its_lost_nodes(federate: Federate, chosen: list[str], first: int) -> None:
    few = [*chosen, f"backbone.split={first}", "federation.fraction=1.0", "federation.min_users=14"]
    with pytest.raises(FederationError, match="of 14 chosen users count") as raised:
        federate(*few, "federation.repeats=0", "federation.max_failures=0.4", nodes=3, client=failing("query.judge", 1))
    assert raised.type is RoundError, "it may be done again"


def test_a_client_that_says_that_it_read_nothing_is_left_out(federate: Federate, chosen: list[str]) -> None:
    class Sizes:
        length, width = 24, 8

    def client(message: Message, context: Context) -> Message:
        reply, asked = honest(message, context), unpack(message.content)
        reads = message.metadata.message_type == "query.read" and "splits" not in asked.fields
        if not reads or context.node_config["partition-id"] != 1 or asked.fields["round"] != 1:
            return reply
        (name,) = (name for name in unpack(reply.content).arrays if name.startswith(records.HIDDEN))
        form = crossing_format(Sizes(), 2 * len(asked.array(records.SLOTS)))  # type: ignore[arg-type]
        packet = form.decode(unpack(reply.content).packet(name))
        nothing = {**packet.tensors, "states": torch.zeros_like(packet.tensors["states"])}
        return Message(pack({}, {name: form.encode(packet.phase, packet.round, nothing)}), reply_to=message)

    few = [*chosen, "backbone.split=1", "federation.fraction=1.0", "strategy.rounds=1", "optim.contexts=2"]
    outcome = federate(*few, nodes=3, client=client)
    assert outcome.metrics[0]["dropped_replies"] == {"malformed": 1}
    assert outcome.metrics[0]["users"] > 0


@pytest.mark.parametrize(("kind", "times"), [("query.judge", 1), ("train", 1), ("evaluate", 2)])
def test_a_client_takes_no_states_of_other_texts_than_its_own(
    federate: Federate, chosen: list[str], kind: str, times: int, caplog: pytest.LogCaptureFixture
) -> None:
    class Sizes:
        length, width = 24, 8

    def client(message: Message, context: Context) -> Message:
        asked = unpack(message.content)
        if message.metadata.message_type != kind or context.node_config["partition-id"] != 1:
            return honest(message, context)
        (name,) = (name for name in asked.arrays if ungrouped(name) in records.CROSSING)
        form = crossing_format(Sizes(), len(asked.array(records.SLOTS)))  # type: ignore[arg-type]
        packet = form.decode(asked.packet(name))
        other = {**packet.tensors, "states": (packet.tensors["states"] - 1).clamp(min=0)}
        arrays = {**asked.arrays, name: np.frombuffer(form.encode(packet.phase, packet.round, other), np.uint8)}
        lying = Message(pack(asked.fields, arrays=arrays), message.metadata.dst_node_id, kind)
        lying.metadata.__dict__["_message_id"] = message.metadata.message_id
        return honest(lying, context)

    few = [*chosen, "backbone.split=1", "federation.fraction=1.0", "strategy.rounds=1", "optim.contexts=1"]
    outcome = federate(*few, nodes=3, client=client)
    assert outcome.summary["dropped_replies"] == {"failed": times}
    assert caplog.text.count("PacketError: there are not as many hidden states as the histories here have") == times


def test_its_folder_recommends_with_the_whole_model(federate: Federate, chosen: list[str]) -> None:
    found = []
    for split in ("null", "1"):
        outcome = federate(*chosen, f"backbone.split={split}", nodes=2)
        listed = json.loads((outcome.folder / "items.json").read_text())["ids"]
        found.append(recommend(str(outcome.folder), None, None, ",".join(listed[:3]), 5)["items"])
    assert [item["item_id"] for item in found[0]] == [item["item_id"] for item in found[1]]


def test_all_that_does_not_go_with_it_is_said_at_once(chosen: list[str]) -> None:
    wrong = ["codec=int8", "privacy=central_gaussian", "backbone.split=3", "federation.over_sampling=0.2"]
    with pytest.raises(ConfigError) as raised:
        compose([*chosen, *wrong], base=None)
    problems = "\n".join(raised.value.problems)
    for said in (
        "backbone.split=3: the language model has 4 layers",
        "backbone.split=3 with codec=int8: hidden states and their gradients travel as they are; give codec=float32",
        "backbone.split=3 with privacy=central_gaussian: the server sees hidden states of each user",
        "backbone.split=3 with federation.over_sampling=0.2: a round has three stages",
    ):
        assert said in problems


@pytest.mark.parametrize(("users", "sizes"), [(1, [1]), (10, [10]), (11, [6, 5]), (20, [10, 10]), (21, [7, 7, 7])])
def test_a_ranking_asks_for_no_small_rest_of_a_nodes_users(users: int, sizes: list[int]) -> None:
    rows = np.arange(users + 3)
    whole = {
        3: Share(rows[:users], rows[:users].astype(np.int32) + 5),
        4: Share(rows[users:], np.arange(3, dtype=np.int32)),
    }
    parts = list(parts_of(whole, 10))
    assert [len(part[3].users) for part in parts] == sizes
    assert np.concatenate([part[3].slots for part in parts]).tolist() == whole[3].slots.tolist()
    assert all((part[3].slots - 5 == part[3].users).all() for part in parts)
    assert [4 in part for part in parts] == [True, *[False] * (len(parts) - 1)]
    assert parts[0][4].users.tolist() == whole[4].users.tolist()


def test_hidden_states_that_cannot_be_are_refused() -> None:
    class Sizes:
        length, width = 3, 2

    form = crossing_format(Sizes(), 2)  # type: ignore[arg-type]
    given = crossing(Sizes(), [torch.ones(2, 2), torch.ones(3, 2)])  # type: ignore[arg-type]

    def came(**changed: torch.Tensor) -> Packet:
        return form.decode(form.encode(0, 1, given | changed), phase=0, round=1)

    assert [tensor.tolist() for tensor in crossed(came())] == [[[1, 1]] * 2, [[1, 1]] * 3]
    for states in ([-1, 3], [2, 4]):
        with pytest.raises(PacketError, match="hidden states came"):
            crossed(came(states=torch.tensor(states, dtype=torch.int32)))
    nothing = came(states=torch.tensor([0, 3], dtype=torch.int32))
    assert [len(tensor) for tensor in crossed(nothing)] == [0, 3], "who is not ranked reads nothing"
    with pytest.raises(PacketError, match="histories of 0 to 3 hidden states came, expected 1 to 3"):
        crossed(nothing, least=1)
    with pytest.raises(PacketError, match="not as many hidden states as the histories here have"):
        crossed(came(), [3, 3])
    for number in (float("nan"), float("inf")):
        with pytest.raises(PacketError, match="NaN or infinite"):
            crossed(came(hidden=given["hidden"] * number))


def test_a_site_lets_nobody_read_its_texts_unless_it_says_so() -> None:
    assert set(EXCHANGES) - set(Policy().exchanges) == {"read", "judge"}
