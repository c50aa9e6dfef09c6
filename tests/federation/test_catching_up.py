"""Bases that were merged into, on devices: whoever missed merges comes to the server's table, and by the shorter way.

A base table here takes 3,236 bytes and a merge 900, so that three merges are shorter than the table and four are not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from flwr.app import Context, Message
from torch import Tensor

from client_app.answers.app import app as honest
from client_app.answers.node import Node, Received
from client_app.stores.frozen import FrozenStore, resident
from commands.describe import describe
from exchanges.records import FROZEN, MERGED, MODEL, VERSIONS, pack, unpack
from federation.sizes import Sizes
from fedrec.config.describe import from_dict

Federate = Callable[..., Any]

HEADER, ITEMS, DIM, RANK, USERS, WARMUP, EVERY, ROUNDS = 36, 100, 8, 2, 24, 2, 2, 14
TABLE, MERGE = HEADER + 4 * ITEMS * DIM, HEADER + 4 * RANK * (ITEMS + DIM)
FIRST = {"float32": TABLE, "int8": HEADER + 4 + ITEMS * DIM}  # the table before the first merge
MERGING = [f"strategy.rounds={ROUNDS}", f"strategy.merge_every={EVERY}", "evaluation.every=0"]
MERGING += [f"dataset.n_users={USERS}", "optim.solve_epochs=1"]
MERGES_AFTER = [4, 6, 8, 10, 12]  # and not after 14, the last round
ALL = ["checkpoint_every=1", "checkpoints_kept=99"]


def described(outcome: Any) -> Sizes:
    return describe(from_dict(yaml.safe_load((outcome.folder / "config.yaml").read_text())), None)


@pytest.fixture
def own_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every node keeps what is sent once in a folder of its own, as devices do."""

    def own(self: Node) -> FrozenStore:
        assert self.setup.simulation is not None
        return FrozenStore(Path(self.setup.simulation.state_dir) / f"device-{self.users.keys[0]}")

    monkeypatch.setattr(Node, "frozen_store", property(own))


@pytest.fixture
def bases(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[Tensor]]:
    """The base tables on which devices trained, by round."""
    seen: dict[int, list[Tensor]] = {}
    train = Node.train

    def spy(self: Node, received: Received, *asked: Any) -> bytes:
        if "base" in received.model.frozen:
            seen.setdefault(received.round, []).append(received.model.frozen["base"].clone())
        return train(self, received, *asked)

    monkeypatch.setattr(Node, "train", spy)
    return seen


def missed(outcome: Any) -> dict[tuple[int, int], int | None]:
    """Merges since the node's last message, by (round, node) of those of the compressed phase; None for the first."""
    found: dict[tuple[int, int], int | None] = {}
    last: dict[int, int] = {}
    for message in outcome.grid.sent:
        round = int(unpack(message.content).fields.get("round", 0))
        if message.metadata.message_type == "train" and round > WARMUP:
            node = message.metadata.dst_node_id
            version = sum(after < round for after in MERGES_AFTER)
            found[round, node] = version - last[node] if node in last else None
            last[node] = version
    return found


@pytest.mark.parametrize("codec", ["float32", "int8"])
def test_who_missed_merges_is_sent_the_shorter_way_and_holds_the_servers_table_to_the_bit(
    federate: Federate, own_disks: None, bases: dict[int, list[Tensor]], codec: str
) -> None:
    overrides = [*MERGING, *ALL, "federation.fraction=0.2", f"codec={codec}"]
    outcome = federate(*overrides, nodes=USERS)
    behind = missed(outcome)
    times = Counter(behind.values())
    size = max(len(packet) for _, _, packet in outcome.grid.packets(outcome.grid.sent, MERGED))
    enough = TABLE // size
    joined_late = [round for (round, _), count in behind.items() if count is None and round > MERGES_AFTER[0]]
    assert joined_late, "somebody comes for the first time after a merge"
    assert all(times[count] for count in (None, 0, 1, 2, 3)), "a first time, and every kind of gap"
    assert codec == "int8" or any(count is not None and count > enough for count in times), "one too long for merges"
    for (round, node), count in behind.items():
        sent = [
            message
            for message in outcome.grid.sent
            if (message.metadata.dst_node_id, message.metadata.message_type) == (node, "train")
            and unpack(message.content).fields["round"] == round
        ]
        assert len(sent) == 1, "nobody had to ask again"
        content = unpack(sent[0].content)
        frozen = [len(packet) for name, packet in content.arrays.items() if name.startswith(FROZEN)]
        merges = [name for name in content.arrays if name.startswith(MERGED)]
        lacks = sum(after < round for after in MERGES_AFTER) if count is None else count
        first = FIRST[codec] if count is None else 0
        by_merges = lacks > 0 and first + lacks * size < TABLE
        assert len(merges) == (lacks if by_merges else 0)
        assert frozen.count(FIRST[codec]) == (first > 0 and (by_merges or not lacks)) + (
            codec == "float32" and lacks > 0 and not by_merges
        )
        assert frozen.count(TABLE) == (frozen.count(FIRST[codec]) if codec == "float32" else 0)
        assert (VERSIONS in content.fields) == by_merges
    assert set(bases) == set(range(WARMUP + 1, ROUNDS + 1))
    for round, seen in bases.items():
        table = outcome.checkpoint(max(WARMUP + 1, round - 1))["frozen.base"]
        assert all(torch.equal(base, table) for base in seen), f"round {round}"


@pytest.mark.parametrize("codec", ["float32", "int8"])
def test_the_meter_counts_the_bytes_of_real_messages(federate: Federate, own_disks: None, codec: str) -> None:
    outcome = federate(*MERGING, "federation.fraction=0.2", f"codec={codec}", nodes=USERS)
    train = [m for m in outcome.grid.sent if m.metadata.message_type == "train"]
    moved = outcome.summary["bytes_per_user"]
    assert moved["down"] * USERS == pytest.approx(sum(len(packet) for *_, packet in outcome.grid.packets(train, MODEL)))
    behind = missed(outcome)
    told = described(outcome)
    peft = told.phases[-1]
    assert (peft.once, peft.whole) == (FIRST[codec], TABLE)
    joined = [round for (round, _), count in behind.items() if count is None]
    frozen = [len(packet) for *_, packet in outcome.grid.packets(train, FROZEN)]
    merged = sum(len(packet) for *_, packet in outcome.grid.packets(train, MERGED))
    tables = sum(length for length in frozen if length in (TABLE, peft.once))
    first = peft.once * len(joined)
    caught_up = merged + tables - first
    assert moved["merges"] * USERS == pytest.approx(caught_up)
    late = [sum(after < round for after in MERGES_AFTER) for round in joined]
    assert caught_up == sum(min(count * peft.merge, TABLE) for count in behind.values() if count) + sum(
        min(count * peft.merge, TABLE - peft.once) for count in late
    )
    assert moved["one_time"] * USERS == pytest.approx(USERS * sum(told.joining.values()) + first)
    assert moved["total"] == pytest.approx(sum(moved[way] for way in ("up", "down", "one_time", "merges")))
    assert sum(record["bytes"]["merges"] for record in outcome.metrics) == caught_up
    # Evaluation, once in the end, has a ledger of its own: the whole for all, as nobody has been ranked before.
    ever = peft.once + min(len(MERGES_AFTER) * peft.merge, TABLE - peft.once)
    assert moved["evaluation"] == peft.down + ever + 2 * told.metrics


def test_a_user_of_every_round_moves_what_was_described(federate: Federate) -> None:
    outcome = federate(*MERGING, "federation.fraction=1.0")
    found = described(outcome)
    counted = outcome.summary["bytes_per_user"]
    assert (found.phases[-1].merge_every, found.phases[-1].merge) == (EVERY, MERGE)
    assert counted["merges"] == found.run.merges == len(MERGES_AFTER) * MERGE
    assert (counted["up"], counted["down"], counted["one_time"]) == (found.run.up, found.run.down, found.run.one_time)


def test_a_device_whose_disk_was_wiped_asks_and_is_sent_the_table(
    federate: Federate, own_disks: None, bases: dict[int, list[Tensor]], tmp_path: Path
) -> None:
    wiped: list[tuple[int, int]] = []

    def client(message: Message, context: Context) -> Message:
        round = int(unpack(message.content).fields.get("round", 0))
        if round in (6, 8) and message.metadata.message_type == "train" and (round, context.node_id) not in wiped:
            wiped.append((round, context.node_id))
            for path in (tmp_path / "runs-1/r/state").glob("device-*/frozen/*"):
                path.unlink()
            resident.cache_clear()  # a new process
        return honest(message, context)

    outcome = federate(*MERGING, *ALL, nodes=2, client=client)
    assert len(wiped) == 4
    answered = [m for m in outcome.grid.received if "missing" in unpack(m.content).fields]
    assert answered, "they asked for what they lacked"
    again = [m for m, _, packet in outcome.grid.packets(outcome.grid.sent, FROZEN) if len(packet) == TABLE]
    assert len(again) > 2, "beside the first time of each"
    assert all(not record["dropped_replies"] for record in outcome.metrics)
    for round, seen in bases.items():
        table = outcome.checkpoint(max(WARMUP + 1, round - 1))["frozen.base"]
        assert all(torch.equal(base, table) for base in seen), f"round {round}"
    untouched = federate(*MERGING, *ALL, nodes=2)
    assert torch.equal(outcome.checkpoint()["frozen.base"], untouched.checkpoint()["frozen.base"])


DAMAGE: dict[str, Callable[[bytes, bytes], bytes]] = {
    "one bit": lambda packet, before: packet[:-1] + bytes([packet[-1] ^ 1]),
    "truncated": lambda packet, before: packet[:-5],
    "a whole packet, of another merge": lambda packet, before: before,
    "noise": lambda packet, before: bytes(range(256)) * 4,
}


@pytest.mark.parametrize("case", DAMAGE)
def test_what_does_not_make_the_announced_version_is_refused(
    federate: Federate, own_disks: None, bases: dict[int, list[Tensor]], case: str
) -> None:
    seen: list[bytes] = []
    refused: list[str] = []

    def client(message: Message, context: Context) -> Message:
        content = unpack(message.content)
        found = [name for name in content.arrays if name.startswith(MERGED)]
        if message.metadata.message_type != "train" or not found:
            return honest(message, context)
        packet = content.arrays[found[-1]].tobytes()
        if content.fields["round"] == 7 and context.node_id == 2:
            damaged = np.frombuffer(DAMAGE[case](packet, seen[0]), dtype=np.uint8)
            told = pack(content.fields, arrays={**content.arrays, found[-1]: damaged})
            changed = Message(told, context.node_id, message.metadata.message_type)
            changed.metadata.__dict__["_message_id"] = message.metadata.message_id
            try:
                return honest(changed, context)
            except Exception as error:
                refused.append(str(error))
                raise
        seen.append(packet)
        return honest(message, context)

    outcome = federate(*MERGING, *ALL, nodes=2, client=client)
    assert len(refused) == 1
    assert "does not make" in refused[0]
    assert outcome.metrics[6]["dropped_replies"] == {"failed": 1}
    assert all(not record["dropped_replies"] for record in outcome.metrics if record["round"] != 7)
    for round, used in bases.items():
        table = outcome.checkpoint(max(WARMUP + 1, round - 1))["frozen.base"]
        assert len(used) == (1 if round == 7 else 2)
        assert all(torch.equal(base, table) for base in used), f"round {round}: in the next the merge came as it should"


def test_a_device_keeps_the_versions_that_a_checkpoint_needs_and_no_older_one(
    federate: Federate, own_disks: None
) -> None:
    def kept(outcome: Any) -> int:
        (folder,) = (outcome.folder / "state").glob("device-*/frozen")
        return sorted(path.stat().st_size > TABLE - HEADER for path in folder.iterdir()).count(True)

    # The last message is the final ranking, when the checkpoint of the last round is written already.
    assert kept(federate(*MERGING, "checkpoint_every=0", nodes=1)) == 1
    # Kept are the checkpoints of rounds 10, 12 and 14, and the last message names 10: versions 4 and 5.
    assert kept(federate(*MERGING, "checkpoint_every=2", "checkpoints_kept=3", nodes=1)) == 2
    assert kept(federate(*MERGING, *ALL, nodes=1)) == 1 + len(MERGES_AFTER)
