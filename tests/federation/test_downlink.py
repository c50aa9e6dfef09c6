"""Tables that devices hold and that steps move: the same on every device and on the server, and counted to the byte."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from flwr.app import Context, Message
from torch import Tensor

from client_app.answers.app import app as honest
from client_app.answers.node import Node, Received
from client_app.stores.frozen import FrozenStore, resident
from commands.describe import describe
from exchanges.records import FROZEN, HOLDS, MERGED, MODEL, unpack
from fedrec.config.compose import compose
from fedrec.config.describe import from_dict
from fedrec.core.errors import ConfigError

Federate = Callable[..., Any]

FAST = ["optim=fast", "optim.negatives=5"]
SGD = ["optim.server.kind=sgd", "optim.server.beta1=0.0", "optim.server.lr=10.0"]
STEPS = ["strategy=full", "downlink=actions", "downlink.actions=8", *FAST]
WIDE = "dataset.n_items=300"
ALL = ["checkpoint_every=1", "checkpoints_kept=99"]
USERS = 24
TABLE = "embedding.items"


@pytest.fixture
def own_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every node keeps what is sent once in a folder of its own, as devices do."""

    def own(self: Node) -> FrozenStore:
        assert self.setup.simulation is not None
        return FrozenStore(Path(self.setup.simulation.state_dir) / f"device-{self.users.keys[0]}")

    monkeypatch.setattr(Node, "frozen_store", property(own))


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[Tensor]]:
    """The tables on which devices trained, by round."""
    seen: dict[int, list[Tensor]] = defaultdict(list)
    train = Node.train

    def spy(self: Node, received: Received, *asked: Any) -> bytes:
        seen[received.round].append(received.model.trainable[TABLE].clone())
        assert received.model.frozen.keys() == received.model.model.frozen.keys()
        return train(self, received, *asked)

    monkeypatch.setattr(Node, "train", spy)
    return seen


def held(outcome: Any, round: int) -> Tensor:
    """What the server says that devices hold after a round."""
    table: Tensor = outcome.checkpoint(round)[f"frozen.{TABLE}"]
    return table


@pytest.mark.parametrize(("codec", "every"), [("int8", 1), ("float32", 2)])
def test_every_device_holds_the_servers_table_to_the_bit_and_downloads_the_shorter_way(
    federate: Federate, own_disks: None, tables: dict[int, list[Tensor]], codec: str, every: int
) -> None:
    rounds, overrides = 10, [*STEPS, *ALL, WIDE, f"dataset.n_users={USERS}", f"codec={codec}", "evaluation.every=0"]
    chosen = ["federation.fraction=0.2", f"strategy.rounds={rounds}", f"downlink.every={every}"]
    outcome = federate(*overrides, *chosen, nodes=USERS)
    assert sorted(tables) == list(range(1, rounds + 1))
    for round, seen in tables.items():
        now = held(outcome, round - 1) if round > 1 else held(outcome, 1)
        assert all(torch.equal(table, now) for table in seen) == (round > 1 or every > 1)
        assert all(torch.equal(table, seen[0]) for table in seen)
    train = [m for m in outcome.grid.sent if m.metadata.message_type == "train"]
    whole = describe(from_dict(yaml.safe_load((outcome.folder / "config.yaml").read_text())), 300).phases[0].whole
    last: dict[int, int] = {}
    steps = {name: len(packet) for _, name, packet in outcome.grid.packets(train, MERGED)}
    kinds = set()
    for message in train:
        arrays, node = unpack(message.content).arrays, message.metadata.dst_node_id
        version = (int(unpack(message.content).fields["round"]) - 1) // every
        chain = [len(packet.tobytes()) for name, packet in arrays.items() if name.startswith(MERGED)]
        frozen = [len(packet.tobytes()) for name, packet in arrays.items() if name.startswith(FROZEN)]
        missed = version - last[node] if node in last else None
        assert (whole in frozen) == (missed is None or (missed > 0 and not chain))
        assert len(chain) in (0, missed)
        assert sum(chain) < whole
        kinds.add((missed is None, bool(chain), whole in frozen))
        last[node] = version
    assert (False, True, False) in kinds, "somebody is sent the steps that it missed"
    moved = outcome.summary["bytes_per_user"]
    sent = {kind: sum(len(packet) for *_, packet in outcome.grid.packets(train, kind)) for kind in (MODEL, MERGED)}
    first = {m.metadata.dst_node_id for m in train}
    wholes = [len(packet) for *_, packet in outcome.grid.packets(train, FROZEN) if len(packet) == whole]
    assert moved["down"] * USERS == pytest.approx(sent[MODEL])
    assert moved["merges"] * USERS == pytest.approx(sent[MERGED] + whole * (len(wholes) - len(first)))
    assert len(steps) >= (rounds - 1) // every


def test_what_a_step_leaves_out_is_part_of_the_next(federate: Federate) -> None:
    """The server's own table is not that of the devices, and never far from it: no step is lost."""
    outcome = federate(*STEPS, *ALL, WIDE, *SGD, "codec=int8", "downlink.actions=32", nodes=1)
    for round in range(1, 6):
        ahead = outcome.checkpoint(round)[f"trainable.{TABLE}"] - held(outcome, round)
        assert ahead.any()
    far = (outcome.checkpoint(5)[f"trainable.{TABLE}"] - outcome.checkpoint(1)[f"trainable.{TABLE}"]).norm()
    assert ahead.norm() < 0.5 * far


def test_with_as_many_actions_as_rows_the_run_is_that_of_whole_tables(federate: Federate) -> None:
    dense = federate("strategy=full", *FAST, *SGD)
    steps = federate(*STEPS, *SGD, "downlink.actions=256")
    for name, tensor in dense.checkpoint().items():
        if name.startswith("trainable."):
            torch.testing.assert_close(steps.checkpoint()[name], tensor, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(held(steps, 5), dense.checkpoint()[f"trainable.{TABLE}"], atol=1e-5, rtol=1e-5)
    assert steps.summary["test"] == pytest.approx(dense.summary["test"], abs=1e-6)


@pytest.mark.parametrize(
    ("more", "layouts"),
    [
        (["codec=int8", "uplink=actions", "uplink.actions=4"], [2, USERS]),
        (["backbone=fedpergnn", "downlink.every=2"], [7]),
        (["grouping=key", "grouping.groups=2"], [2]),
    ],
    ids=str,
)
def test_the_layout_changes_nothing(federate: Federate, more: list[str], layouts: list[int]) -> None:
    overrides = [*STEPS, *SGD, WIDE, f"dataset.n_users={USERS}", "strategy.rounds=3", *more]
    one = federate(*overrides, nodes=1)
    for nodes in layouts:
        many = federate(*overrides, nodes=nodes)
        for name, tensor in one.checkpoint().items():
            if not name.startswith(("meter.", "merged", "best.merged")):  # named by packets, to the last bit
                torch.testing.assert_close(many.checkpoint()[name], tensor, atol=1e-5, rtol=1e-5, msg=name)
        assert [line["bytes_per_user"] for line in many.metrics] == [line["bytes_per_user"] for line in one.metrics]
        assert many.summary["test"] == pytest.approx(one.summary["test"], abs=1e-6)
        assert all(not line["dropped_replies"] for line in many.metrics)


def test_both_engines_agree(federate: Federate) -> None:
    few = [WIDE, f"dataset.n_users={USERS}", "strategy.rounds=2"]
    fast, slow = (federate(*STEPS, *SGD, *few, f"engine={engine}") for engine in ("cohort", "oracle"))
    torch.testing.assert_close(held(fast, 2), held(slow, 2), atol=1e-5, rtol=1e-5)
    assert fast.summary["test"] == pytest.approx(slow.summary["test"], abs=1e-6)


def test_a_device_whose_disk_was_wiped_is_sent_the_whole(
    federate: Federate, own_disks: None, tables: dict[int, list[Tensor]], tmp_path: Path
) -> None:
    overrides, wiped = [*STEPS, *ALL, "codec=int8", f"dataset.n_users={USERS}"], set()

    def client(message: Message, context: Context) -> Message:
        fields = unpack(message.content).fields
        if fields.get("round") == 4 and message.metadata.message_type == "train" and context.node_id not in wiped:
            wiped.add(context.node_id)
            for path in (tmp_path / "runs-1/r/state").glob("device-*/frozen/*"):
                path.unlink()
            resident.cache_clear()  # a new process
        return honest(message, context)

    outcome = federate(*overrides, nodes=2, client=client)
    assert len(wiped) == 2
    assert any("missing" in unpack(m.content).fields for m in outcome.grid.received), "they asked for what they lacked"
    assert all(not line["dropped_replies"] for line in outcome.metrics)
    for round in range(2, 6):
        assert all(torch.equal(table, held(outcome, round - 1)) for table in tables[round])


def test_a_device_keeps_only_what_the_server_may_go_back_to(federate: Federate, own_disks: None) -> None:
    outcome = federate(*STEPS, "codec=int8", "checkpoint_every=0", "evaluation.every=0", nodes=1)
    names = {str(unpack(m.content).fields[HOLDS]) for m in outcome.grid.sent if MODEL in unpack(m.content).arrays}
    (folder,) = (outcome.folder / "state").glob("device-*/frozen")
    assert len(names) == 6
    assert len({path.stem for path in folder.iterdir()} & names) == 2, "that before the last round, and that after it"


REFUSED = {
    "a correction over a frozen table": (["downlink=actions"], "downlink=actions: .*embedding=lora the frozen table"),
    "no actions": (["strategy=full", "downlink=actions", "downlink.actions=1"], r"downlink\.actions"),
    "no rounds": (["strategy=full", "downlink=actions", "downlink.every=0"], r"downlink\.every"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_with_its_reason(case: str) -> None:
    overrides, words = REFUSED[case]
    with pytest.raises(ConfigError, match=words):
        compose(overrides, base=None)


def test_a_bound_of_the_bytes_is_told_beforehand(federate: Federate) -> None:
    outcome = federate(*STEPS, WIDE, "codec=int8", "federation.fraction=1.0")
    found = describe(from_dict(yaml.safe_load((outcome.folder / "config.yaml").read_text())), 300)
    counted = outcome.summary["bytes_per_user"]
    assert (counted["down"], counted["one_time"]) == (found.run.down, found.run.one_time)
    assert 0.5 * found.run.merges < counted["merges"] <= found.run.merges
